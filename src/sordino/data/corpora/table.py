"""Tables of texts on disk (.jsonl, .tsv, .csv) to rows of named cells, bad rows told apart from bad tables.

UTF-8, with or without a byte-order mark. TSV has no quoting (a quotation mark is a quotation mark); CSV has the
usual one, and refuses quotes that do not close instead of swallowing the lines that follow.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.errors import DataError

SUFFIXES = (".jsonl", ".tsv", ".csv")


@dataclass(frozen=True)
class Row:
    """One line of a table: its number (from 1), its cells by column as text, and what is wrong with it."""

    line: int
    cells: dict[str, str]
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """columns: in the order of the header, or of first appearance in a JSONL file."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def find(folder: Path, texts: str | None) -> Path:
    """The one table in a folder, or the one that `texts` names; DataError lists what was found."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory.", "Name the folder that holds the audio and its table.")
    found = sorted(
        item.name
        for item in folder.iterdir()
        if item.suffix.lower() in SUFFIXES and item.is_file() and not item.name.startswith(".")
    )
    listing = f"Found: {', '.join(found) or 'none'}."
    if texts is not None:
        table = folder / texts
        if not table.is_file():
            raise DataError(f"{table} is not a file.", f"Name the table in 'texts'. {listing}")
        if table.suffix.lower() not in SUFFIXES:
            raise DataError(f"{table} is not a table.", f"Tables end in {', '.join(SUFFIXES)}. {listing}")
        return table
    if len(found) != 1:
        raise DataError(
            f"{folder} holds {len(found)} tables of texts, one is needed. {listing}",
            "Name it in 'texts'." if found else f"Add one ({', '.join(SUFFIXES)}) with a row for each clip.",
        )
    return folder / found[0]


def read(path: Path) -> Table:
    """A whole table; DataError for one that is not UTF-8, is empty or repeats a column."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte {error.start}).", "Save the table as UTF-8.") from None
    if path.suffix.lower() == ".jsonl":
        rows = tuple(_json_rows(text))
        columns = tuple(dict.fromkeys(column for row in rows for column in row.cells))
    else:
        columns, rows = _delimited(path, text)
    if not rows:
        raise DataError(f"{path} has no rows.", "Add a row for each clip.")
    return Table(path, columns, rows)


def _json_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, f"not JSON: {error}")
            continue
        if not isinstance(record, dict):
            yield Row(number, {}, f"not a JSON object but {type(record).__name__}")
            continue
        odd = [name for name, value in record.items() if isinstance(value, bool | list | dict)]
        cells = {name: "" if value is None else str(value) for name, value in record.items()}
        yield Row(number, cells, f"{', '.join(odd)} must be text or a number" if odd else "")


def _delimited(path: Path, text: str) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    stream = io.StringIO(text, newline="")
    if path.suffix.lower() == ".tsv":
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(stream, strict=True)
    try:
        columns = tuple(cell.strip() for cell in next(reader, []))
    except csv.Error as error:
        raise DataError(f"{path}:1: {error}.", "The first line names the columns.") from None
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{path} has two columns {', '.join(map(repr, twice))}.", "Rename or drop one.")
    return columns, tuple(_delimited_rows(reader, columns))


def _delimited_rows(reader: Any, columns: tuple[str, ...]) -> Iterator[Row]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, {}, f"unreadable: {error}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        named = dict(zip(columns, cells, strict=False))
        wrong = f"{len(cells)} cells under {len(columns)} columns" if len(cells) != len(columns) else ""
        yield Row(line, named, wrong)
