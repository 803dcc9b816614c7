"""Progress bars with a time left, on stderr, for anything that may take more than a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int], None]
console = Console(stderr=True)


@contextmanager
def bar(label: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A bar of `total` steps, `done` of them behind it already. Yields advance(steps).

    Where stderr is no terminal, the finished bar is printed once.
    """
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda steps: progress.advance(task, steps)


def note(message: str) -> None:
    """A line for people, on stderr."""
    console.print(message, highlight=False, soft_wrap=True, markup=False)
