"""Progress of anything that may take more than a few seconds: bars with a time left on stderr, or a caller's own."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sordino.runtime import terminal

Advance = Callable[[int], None]
Listener = Callable[[str, int, int], None]  # what is done, steps behind it, steps in all
LINES = 20  # of a training, where stderr is no terminal
QUIET = 60.0  # seconds from one line of a bar to the next there
console = Console(stderr=True)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def reported_to(listener: Listener | None) -> Iterator[None]:
    """Inside the block nothing is printed: bars become calls of `listener(label, done, total)`; None is silence."""
    token = _listener.set(listener or _silence)
    try:
        yield
    finally:
        _listener.reset(token)


def _silence(*_: object) -> None:
    pass


@contextmanager
def bar(label: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A bar of `total` steps, `done` of them behind it already. Yields advance(steps).

    Where stderr is no terminal, the finished bar is printed once, and before it a line every QUIET seconds.
    """
    with _bar(MofNCompleteColumn(), label, total, done) as advance:
        yield advance


@contextmanager
def step_bar(label: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar of steps that each say something (a loss). Yields advance(words, keep=False).

    Where stderr is no terminal, some LINES of the steps, the last, and those to keep are lines with the time left.
    """
    listener = _listener.get()
    if listener is not None:
        told = _told(listener, label, total, done)
        yield lambda words, keep=False: told(1)
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
        words_column = TextColumn("{task.fields[words]}")
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), words_column, console=console) as progress:
            task = progress.add_task(terminal.markup(label), total=total, completed=done, words="")
            yield lambda words, keep=False: progress.update(task, advance=1, words=terminal.markup(words))
    else:
        yield _lines(label, total, done)


def _lines(label: str, total: int, done: int) -> Callable[..., None]:
    left, every = _time_left(total, done), max(1, total // LINES)

    def advance(words: str, keep: bool = False) -> None:
        nonlocal done
        done += 1
        if keep or done % every == 0 or done == total:
            note(f"  {label}: step {done} of {total}, {words}, {left(done)} left")

    return advance


def _time_left(total: int, first: int) -> Callable[[int], datetime.timedelta]:
    """From now on: the time that is left when so many steps are done, at the pace of those since."""
    start = time.monotonic()

    def left(done: int) -> datetime.timedelta:
        pace = (time.monotonic() - start) / max(1, done - first)
        return datetime.timedelta(seconds=round(pace * max(0, total - done)))

    return left


@contextmanager
def byte_bar(label: str, total: int) -> Iterator[Advance]:
    """A bar of `total` bytes. Yields advance(bytes)."""
    with _bar(DownloadColumn(), label, total, 0) as advance:
        yield advance


@contextmanager
def _bar(amount: ProgressColumn, label: str, total: int, done: int) -> Iterator[Advance]:
    listener = _listener.get()
    if listener is not None:
        yield _told(listener, label, total, done)
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), amount, TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(terminal.markup(label), total=total, completed=done)
        lines = None if console.is_terminal else _rare_lines(label, total, done)

        def advance(steps: int) -> None:
            progress.advance(task, steps)
            if lines:
                lines(steps)

        yield advance


def _rare_lines(label: str, total: int, done: int) -> Advance:
    left, printed = _time_left(total, done), time.monotonic()

    def advance(steps: int) -> None:
        nonlocal done, printed
        done += steps
        if done < total and time.monotonic() - printed >= QUIET:
            printed = time.monotonic()
            note(f"  {label}: {done / total:.0%}, {left(done)} left")

    return advance


def _told(listener: Listener, label: str, total: int, done: int) -> Advance:
    listener(label, done, total)

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        listener(label, done, total)

    return advance


def note(message: str) -> None:
    """A line for people, on stderr."""
    if _listener.get() is None:
        console.print(terminal.message(message), highlight=False, soft_wrap=True, markup=False)
