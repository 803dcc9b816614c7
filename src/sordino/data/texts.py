"""Texts to be scored: a line each of a text file, or the text of each row of a .jsonl.

    read(Path("out.de"))                          # hypotheses of a text file; of segments.jsonl, each row's `text`
    read(Path("test.jsonl"), "references")        # of a manifest, each row's `target_text`

UTF-8, with or without a byte order mark; only line feeds end lines. What is no text is refused with file and line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sordino.errors import DataError
from sordino.runtime import foreign
from sordino.runtime.terminal import printable, quoted
from sordino.runtime.values import Malformed, parse_json

Role = Literal["hypotheses", "references", "sources"]
KEYS: dict[Role, tuple[str, ...]] = {  # of a row; the first that it has
    "hypotheses": ("text",),
    "references": ("text", "target_text"),
    "sources": ("text", "source_text"),
}
ROWS = ".jsonl"


@dataclass(frozen=True)
class Text:
    """One text: its line in the file, from 1, and, of rows that name it, the recording that it is of."""

    text: str
    line: int
    audio: str | None = None


def read(file: Path, role: Role = "hypotheses") -> list[Text]:
    """All texts of a file, in order; empty ones too. Raises DataError for what cannot be read, or holds no texts."""
    if file.suffix.lower() == ROWS:
        return [_of_row(file, number, row, KEYS[role]) for number, row in foreign.read_jsonl(file)]
    texts = [Text(line.removesuffix("\r"), number) for number, line in enumerate(foreign.lines(file), start=1)]
    if texts and _is_row(texts[0].text):
        raise DataError(
            f"{file} holds JSON objects, not texts.", f"Name it {file.stem}{ROWS}: the text of each is read."
        )
    return texts


def refuse_blank(file: Path, texts: Sequence[Text], what: str) -> None:
    """Raise DataError that names the first blank line of a file. what: 'reference', 'source text'."""
    blank = [one.line for one in texts if not one.text.strip()]
    if blank:
        more = f", as are {len(blank) - 1:,} more" if len(blank) > 1 else ""
        raise DataError(
            f"{printable(str(file))}:{blank[0]}: the {what} is blank{more}.",
            "Fill the line, or leave the segment out of all files.",
        )


def refuse_lengths(columns: Sequence[tuple[Path, Sequence[Text]]]) -> None:
    """Raise DataError where files of one set have different numbers of texts."""
    if len({len(texts) for _, texts in columns}) > 1:
        counts = ", ".join(f"{printable(str(file))} has {len(texts):,} lines" for file, texts in columns)
        raise DataError(f"{counts}.", "Give one line a segment, in the same order.")


def _of_row(file: Path, number: int, row: dict[str, Any], keys: tuple[str, ...]) -> Text:
    where = f"{printable(str(file))}:{number}"
    key = next((key for key in keys if key in row), None)
    if key is None:
        held = ", ".join(printable(name, 40) for name in [*row][:12]) or "nothing"
        raise DataError(f"{where}: the row lacks '{' or '.join(keys)}'.", f"It has {held}.")
    if not isinstance(row[key], str):
        raise DataError(f"{where}: '{key}' is {quoted(row[key], 60)}, not a text.", "Translate the clip again.")
    audio = row.get("audio")
    return Text(row[key], number, audio if isinstance(audio, str) else None)


def _is_row(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(parse_json(line), dict)
    except Malformed:
        return False
