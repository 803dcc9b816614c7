"""Text from elsewhere never steers the terminal, and never fills it."""

from __future__ import annotations

from typing import Any

import pytest

from sordino.errors import DataError
from sordino.runtime.terminal import LIMIT, markup, message, printable, quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain.wav", "plain.wav"),
        ("Größe 大 🎧 می‌خواهم", "Größe 大 🎧 می‌خواهم"),  # joiners between letters stay
        ("a\x1b[31m.wav", "a\\x1b[31m.wav"),
        ("\x1b]0;owned\a", "\\x1b]0;owned\\x07"),
        ("two\nlines\r\tand a tab", "two\\nlines\\r\\tand a tab"),
        ("\0\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("lat\udce9in.wav", "lat\\xe9in.wav"),  # a file name that is not UTF-8
        ("half \ud83d", "half \\ud83d"),
        ("gpj\u202e.wav", "gpj\\u202e.wav"),
        ("next\u2028line", "next\\u2028line"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    shown.encode("utf-8")
    assert printable(shown) == shown


def test_long_text_is_clipped_in_the_middle() -> None:
    shown = printable("a" * 5000 + "b" * 5000)
    assert len(shown) == LIMIT
    assert shown.startswith("aaa")
    assert shown.endswith("bbb")
    assert printable("x" * 20, 5) == "xxx…x"
    assert printable("x" * LIMIT) == "x" * LIMIT


def exploding(levels: int = 30) -> Any:
    value: Any = "lol"
    for _ in range(levels):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a'b", '"a\'b"'),
        ("\x1b", "'\\x1b'"),
        (7, "7"),
        (None, "None"),
        ([1, 2], "[1, 2]"),
        ({"a": {"b": {"c": {"d": 1}}}}, "{'a': {'b': {'c': {...}}}}"),
        ({"seed": 10**5000}, "{'seed': <an integer of 16,610 bits>}"),
    ],
)
def test_values_are_quoted_as_python_writes_them(value: Any, shown: str) -> None:
    assert quoted(value) == shown


def test_a_structure_of_ten_to_the_thirty_values_is_quoted_at_once() -> None:
    assert len(quoted(exploding())) <= LIMIT
    assert len(quoted({"prompt": exploding(), "seed": "x" * 10**6})) <= LIMIT
    endless: list[Any] = []
    endless.append(endless)
    assert quoted(endless) == "[[[[...]]]]"


def test_every_error_message_is_printable() -> None:
    error = DataError("v/x\x1b[31m.wav does not exist.\nv/\udcff.wav is silent.", f"Look at {'y' * 10**6}.")
    assert error.problem == "v/x\\x1b[31m.wav does not exist.\nv/\\xff.wav is silent."
    assert len(str(error)) < 700
    assert str(error).startswith(error.problem)
    assert message("word " * 10**6).count("word") < 1000


def test_brackets_in_names_are_no_markup() -> None:
    from rich.text import Text

    assert Text.from_markup(markup("a[red]b[/]c[/nonsense]")).plain == "a[red]b[/]c[/nonsense]"


def test_notes_and_labels_of_bars_print_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from sordino.runtime import progress

    progress.note("left out: a[red]b\x1b[2J.wav")
    with progress.bar("scoring [/nonsense]\x1b[2J", 1) as advance:
        advance(1)
    told = capsys.readouterr().err
    assert "left out: a[red]b\\x1b[2J.wav" in told
    assert "scoring [/nonsense]\\x1b[2J" in told
