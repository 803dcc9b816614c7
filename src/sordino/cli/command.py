"""What a command is, how its words are parsed, and how a mistake in them becomes one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rich.console import Console

from sordino.config.schema import Recipe
from sordino.config.sections import hints, section_in, stage_sections
from sordino.errors import UsageError, near_match

Result = dict[str, Any]
ALIASES = {"to": "target", "from": "source"}  # options of other commands -> the recipe's names for them


@dataclass(frozen=True)
class Command:
    """help: one line; arguments: adds to the parser; run: returns what --json prints; example: command lines.

    stage: whose settings --help lists.
    """

    help: str
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], Result]
    example: str
    stage: str | None = None


class Parser(argparse.ArgumentParser):
    """argparse for one command. Options may stand anywhere, and mistakes are raised (UsageError), not printed."""

    def __init__(self, name: str, command: Command) -> None:
        super().__init__(
            prog=f"sordino {name}",
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog="examples:\n" + "".join(f"  {line.strip()}\n" for line in command.example.strip().splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.name, self.stage = name, command.stage
        command.arguments(self)
        self.add_argument("--json", action="store_true", help="end stdout with one JSON object on one line")

    def format_help(self) -> str:
        """With the settings of the stage."""
        if self.stage is None:
            return super().format_help()
        from sordino.config import reference

        return f"{super().format_help().rstrip()}\n\n{reference.help_text(self.stage)}\n"

    def rest(self, name: str, metavar: str, help: str) -> None:
        """An argument that takes any number of words, none too."""
        self.add_argument(name, nargs="*", default=[], metavar=metavar, help=help)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Raises UsageError. --help prints and exits."""
        args, extra = self.parse_known_intermixed_args(words)
        option = next((word for word in extra if word.startswith("-")), None)
        if option is None and not extra:
            return args
        if option is None:
            raise UsageError(f"{self.name}: there is no place for {' '.join(extra)}.", self._more())
        name, _, value = option.partition("=")
        after = words[words.index(option) + 1 :]
        if not value and after and not after[0].startswith("-") and "=" not in after[0]:
            value = after[0]
        raise UsageError(
            f"{self.name}: there is no option {name}.", self._instead_of(name, value, hasattr(args, "recipe"))
        )

    def _print_message(self, message: str, file: Any = None) -> None:
        """--help, whose reader may leave; argparse would swallow a full disk."""
        print(message, end="", file=file or sys.stdout)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.name}: {message}.", self._more())

    def _more(self) -> str:
        return f"`sordino {self.name} --help` shows how."

    def _instead_of(self, option: str, value: str, takes_recipe: bool) -> str:
        """A setting of the recipe that was given as an option, or the nearest option."""
        key = option.lstrip("-").replace("-", "_")
        setting = setting_key(ALIASES.get(key, key), self.stage) if takes_recipe else None
        if setting:
            return f"Settings of a recipe are written key=value: {setting}={value or '...'}"
        names = {name.lstrip("-"): name for name in self._option_string_actions}
        near = near_match(option.lstrip("-"), names)
        return f"Did you mean {names[near]}? {self._more()}" if near else self._more()


def setting_key(name: str, stage: str | None) -> str | None:
    """The dotted key of a recipe's setting by its last name: of the recipe itself, of the stage's section, or of the
    only section that has it."""
    sections = {field: section_in(hint) for field, hint in hints(Recipe).items()}
    if name in sections and sections[name] is None:
        return name
    having = [field for field, section in sections.items() if section and name in hints(section)]
    own = stage_sections()[stage][0] if stage else None
    if own in having:
        return f"{own}.{name}"
    return f"{having[0]}.{name}" if len(having) == 1 else None


def count(text: str) -> int:
    """A number of things, at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {text}")
    return int(text)


def seconds(text: str) -> float:
    if not 0 < float(text) < 3600:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 3600, found {text}")
    return float(text)


class Output(Console):
    """rich ends the program with 1 where a reader leaves; here that is no error."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def output() -> Console:
    """stdout for tables; as wide as they need where it is no terminal."""
    return Output(width=None if sys.stdout.isatty() else 160)
