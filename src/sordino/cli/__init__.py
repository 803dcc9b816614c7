"""The command line: a table of commands, lazy imports, exit codes.

Everything for people goes to stderr, results to stdout. With `--json` stdout ends with exactly one JSON object on one
line. Exit codes: 0 done, 1 a bug of ours (with a traceback), 2 something the user can fix (one clear message),
128 + n ended by signal n: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import sordino
from sordino.cli import model_commands, process, recipe_commands, start_commands, text_commands
from sordino.cli.command import Command, Parser
from sordino.errors import SordinoError, UsageError, is_out_of_memory, near_match
from sordino.runtime import environment

GROUPS: dict[str, dict[str, Command]] = {
    "First steps": start_commands.COMMANDS,
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
    process.prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with process.signals_raised():
            return _flushed(words)
    except process.Ended as ended:
        process.tell(f"ended by {signal.Signals(ended.number).name}; {process.GOES_ON}.")
        return 128 + ended.number
    except KeyboardInterrupt:
        process.tell(f"interrupted; {process.GOES_ON}.")
        return 130
    except BrokenPipeError:  # `| head`
        process.give_up(sys.stdout)
        return 0
    except SordinoError as error:
        process.tell(str(error))
        return 2
    except Exception as error:
        told = _explained(error, words)
        if told is None:
            raise
        process.tell(str(told))
        return 2


def _flushed(words: Sequence[str]) -> int:
    """What was printed is written, or cannot be, before the exit code is known: after --help, too."""
    try:
        code = _dispatch(words)
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _explained(error: Exception, words: Sequence[str]) -> SordinoError | None:
    """An error of the machine as what the user can do about it; None for a bug of ours."""
    if is_out_of_memory(error):
        batches = words[0] in ("translate", "submit")
        remedy = "Lower --batch-size, or take another --device." if batches else "Free some of it."
        return SordinoError("there is not enough memory.", remedy)
    return process.explained(error)


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
    if any("\0" in word for word in words):
        raise UsageError("a word of the command holds NUL, which no path and no setting has.")
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
        process.print_json(result)
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
