"""Progress bars with a time left, on stderr, for anything that may take more than a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
console = Console(stderr=True)


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
    columns = (TextColumn("{task.description}"), BarColumn(24), amount, TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(terminal.markup(label), total=total, completed=done)
        yield lambda steps: progress.advance(task, steps)


def note(message: str) -> None:
    """A line for people, on stderr."""
    console.print(terminal.message(message), highlight=False, soft_wrap=True, markup=False)
