"""Foreign text on its way to a terminal: control characters spelled out, halves of surrogates too, long text clipped.

File names, ids, cells of tables and values of recipes come from elsewhere. Every error message passes through here
(errors.py), and so does what progress.py prints. Imports nothing of sordino, so that everything may import it.
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from typing import Any

LIMIT = 500  # characters shown of one name, path or value
LINE_LIMIT = 4000  # characters of a message's line
RESERVED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# marks that turn the direction of what follows; those that only join or separate letters stay
DIRECTIONS = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def printable(text: str, limit: int | None = LIMIT) -> str:
    """One line without anything that a terminal would obey, its middle left out beyond `limit` characters."""
    return _escaped(clipped(text, limit))


def whole(text: str) -> str:
    """As `printable`, of any length and with its line ends: what a command was asked for."""
    return "\n".join(printable(line, None) for line in text.split("\n"))


def message(text: str) -> str:
    """As `printable`, for sentences with foreign words in them: line ends stay, and each long word is clipped."""
    lines = (re.sub(rf"\S{{{LIMIT + 1},}}", lambda word: clipped(word[0]), line) for line in text.split("\n"))
    return "\n".join(printable(line, LINE_LIMIT) for line in lines)


def quoted(value: Any, limit: int = LIMIT) -> str:
    """A foreign value as Python writes it, of a structure its beginning: what is left out is never built."""
    return printable(_BRIEF.repr(value), limit)


def markup(text: str, limit: int | None = LIMIT) -> str:
    """As `printable`, for rich: brackets are brackets."""
    from rich.markup import escape

    return escape(printable(text, limit))


def clipped(text: str, limit: int | None = LIMIT) -> str:
    """Beginning and end, where there are more than `limit` characters."""
    if limit is None or len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 1]}…{text[len(text) - end :]}"


def _escaped(text: str) -> str:
    return text if text.isprintable() else "".join(map(_spelled, text))


def _spelled(character: str) -> str:
    if character in RESERVED:
        return RESERVED[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in DIRECTIONS:
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


class _Brief(reprlib.Repr):
    """reprlib's limits: of a structure three levels, of each the first few items."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 6
        self.maxstring = self.maxother = 200

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to spell out integers of more than 4,300 digits
        return repr(x) if x.bit_length() < 200 else f"<an integer of {x.bit_length():,} bits>"


_BRIEF = _Brief()
