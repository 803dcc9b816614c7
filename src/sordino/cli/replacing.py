"""Finished work is replaced only when that was said: by --yes, or by an answer at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sordino.cli.command import Parser
from sordino.config.schema import Recipe
from sordino.errors import ArtifactError
from sordino.measure.show import spent

if TYPE_CHECKING:
    from sordino.pipeline.runner import Planned


def argument(parser: Parser) -> None:
    note = "replace finished stages that are out of date; without it, a terminal is asked, and a script refused"
    parser.add_argument("--yes", action="store_true", help=note)


def allow(recipe: Recipe, yes: bool) -> Callable[[Sequence[Planned]], None]:
    """What asks, or raises ArtifactError, before finished stages are replaced."""

    def ask(lines: Sequence[Planned]) -> None:
        if yes:
            return
        problem = summary(lines)
        if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
            raise ArtifactError(problem, f"Add --yes to replace them, or name={free_name(recipe)} to keep both.")
        print(f"{problem}\nname={free_name(recipe)} would keep both. Replace them? [y/N] ", file=sys.stderr, end="")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ArtifactError("nothing was replaced.", f"name={free_name(recipe)} keeps both.")

    return ask


def summary(lines: Sequence[Planned]) -> str:
    """Which finished stages go, why the first one does, and how long they took."""
    known = [line.seconds for line in lines if line.seconds is not None]
    each = ", ".join(f"{line.stage} ({spent(line.seconds)})" for line in lines)
    count = "a finished stage" if len(lines) == 1 else f"{len(lines)} finished stages"
    total = f" that took {spent(sum(known))}" if known else ""
    return f"this replaces {count}{total}: {each}. {lines[0].stage}: {lines[0].why}."


def free_name(recipe: Recipe) -> str:
    """A name for a run beside the one that is there."""
    numbers = iter(range(2, sys.maxsize))
    return next(name for n in numbers if not (recipe.directory.parent / (name := f"{recipe.name}-{n}")).exists())
