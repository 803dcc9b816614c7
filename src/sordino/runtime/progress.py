"""Progress of anything that may take more than a few seconds: bars with a time left on stderr, or a caller's own."""

from __future__ import annotations

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

    Where stderr is no terminal, the finished bar is printed once.
    """
    with _bar(MofNCompleteColumn(), label, total, done) as advance:
        yield advance


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
        yield lambda steps: progress.advance(task, steps)


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
