"""The command line: a table of commands, lazy imports, exit codes.

Everything for people goes to stderr, results to stdout. With `--json` stdout ends with exactly one JSON object on one
line. Exit codes: 0 done, 1 a bug of ours (with a traceback), 2 something the user can fix (one clear message),
130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import sordino
from sordino.cli import model_commands, recipe_commands, text_commands
from sordino.cli.command import Command, Parser
from sordino.errors import SordinoError, UsageError, explain_os_error, is_out_of_memory, near_match
from sordino.runtime import environment

GROUPS: dict[str, dict[str, Command]] = {
    "The whole chain of a recipe": recipe_commands.CHAIN,
    "One stage of a recipe, in the order in which they run": recipe_commands.STAGES,
    "Models": model_commands.COMMANDS,
    "Texts": text_commands.COMMANDS,
}
COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}
HELP, VERSION = ("help", "--help", "-h"), ("version", "--version")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    environment.prepare()
    environment.quiet_libraries()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # a full disk behind it is told here, and not when Python ends
        return code
    except SordinoError as error:
        print(f"sordino: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # `| head`
            _drop_stdout()
            return 0
        told = explain_os_error(error)
        if told is not None:
            _drop_stdout()
            print(f"sordino: {told}", file=sys.stderr)
            return 2
        if not is_out_of_memory(error):
            raise
        batches = words[0] in ("translate", "submit")
        remedy = "Lower --batch-size, or take another --device." if batches else "Free some of it."
        print(f"sordino: there is not enough memory. {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sordino: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130


def _drop_stdout() -> None:
    """What is still to be written there goes nowhere; Python would try once more when it ends."""
    with suppress(OSError):  # of a caller in the same process it may have no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: Sequence[str]) -> int:
    """Run a command. Raises UsageError for one that is not there."""
    if words[:1] and words[0] in VERSION:
        print(f"sordino {sordino.__version__}")
        return 0
    if words[:1] and words[0] in HELP:
        words = [*words[1:2], "--help"] if words[1:] else []
    if not words:
        print(overview())
        return 0
    name = words[0]
    if name not in COMMANDS:
        near = near_match(name, COMMANDS)
        guess = f"Did you mean {near}? " if near else ""
        what = "option (the command comes first)" if name.startswith("-") else "command"
        raise UsageError(f"there is no {what} {name}.", f"{guess}`sordino help` lists the commands.")
    _refuse_old_form(name, words[1:])
    args = Parser(name, COMMANDS[name]).parse(words[1:])
    args.command = name
    result = COMMANDS[name].run(args)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return int(result.get("exit", 0))


def _refuse_old_form(name: str, words: Sequence[str]) -> None:
    """translate and evaluate once took a recipe or files. Raises UsageError that says today's command."""
    first = next((word for word in words if not word.startswith("-")), "")
    is_recipe = first.endswith((".yaml", ".yml"))
    if name == "translate" and is_recipe:
        raise UsageError("translate takes a model and audio files.", f"For a recipe: sordino translate-test {first}")
    texts = any(word.startswith(("--references", "--sources", "--segments")) for word in words)
    if name == "evaluate" and (texts or (Path(first).is_file() and not is_recipe)):
        raise UsageError("evaluate takes a recipe.", "For text files: sordino score HYPOTHESES --references FILE")


def overview() -> str:
    """What `sordino` alone prints: every command by its group."""
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: sordino COMMAND ...", "", "Make audio language models small without losing their voice."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:{width}}{command.help}" for name, command in commands.items())]
    lines += ["", "`sordino COMMAND --help` shows a command's options, and examples. Start with:"]
    return "\n".join([*lines, "", "  sordino run demo"])
