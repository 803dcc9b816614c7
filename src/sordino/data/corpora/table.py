"""Tables of texts on disk (.jsonl, .tsv, .csv) to rows of named cells, bad rows told apart from bad tables.

UTF-8, with or without a byte-order mark. TSV has no quoting (a quotation mark is a quotation mark). CSV has the usual
one, and refuses quotes that do not close instead of swallowing the lines that follow; its cells stand between commas,
semicolons, bars or tabs, whichever its header has most of. NaN in JSON is a missing value, as pandas means it.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.data.corpora.base import visible
from sordino.errors import DataError
from sordino.runtime import foreign
from sordino.runtime.terminal import quoted
from sordino.runtime.values import Malformed, kind_of, parse_json

SUFFIXES = (".jsonl", ".tsv", ".csv")
DELIMITERS = ",;|\t"  # of CSV; the first of equals
SHOWN = 12  # columns that an error lists


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

    def listing(self) -> str:
        """The columns, for an error."""
        more = f" and {len(self.columns) - SHOWN:,} more" if len(self.columns) > SHOWN else ""
        return f"Found: {', '.join(self.columns[:SHOWN]) or 'none'}{more}."


def find(folder: Path, texts: str | None) -> Path:
    """The one table in a folder, or the one that `texts` names; DataError lists what was found."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory.", "Name the folder that holds the audio and its table.")
    tables = [item.name for item in visible(folder) if item.suffix.lower() in SUFFIXES and item.is_file()]
    listing = f"Found: {', '.join(tables) or 'none'}."
    if texts is not None:
        table = folder / texts
        if not table.is_file():
            raise DataError(f"{table} is not a file.", f"Name the table in 'texts'. {listing}")
        if table.suffix.lower() not in SUFFIXES:
            raise DataError(f"{table} is not a table.", f"Tables end in {', '.join(SUFFIXES)}. {listing}")
        return table
    if len(tables) != 1:
        raise DataError(
            f"{folder} holds {len(tables)} tables of texts, one is needed. {listing}",
            "Name it in 'texts'." if tables else f"Add one ({', '.join(SUFFIXES)}) with a row for each clip.",
        )
    return folder / tables[0]


def read(path: Path) -> Table:
    """A whole table; DataError for one that is not UTF-8, is empty or repeats a column."""
    text = foreign.read_text(path)
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
            record = parse_json(line, finite=False)
        except Malformed as error:
            yield Row(number, {}, str(error))
            continue
        if not isinstance(record, dict):
            yield Row(number, {}, f"not a JSON object but {kind_of(record)}")
            continue
        odd = [name for name, value in record.items() if not _is_plain(value)]
        cells = {name: _cell(value) for name, value in record.items()}
        yield Row(number, cells, f"{', '.join(odd)} must be text or a number" if odd else "")


def _is_plain(value: Any) -> bool:
    return not isinstance(value, bool | list | dict) and not (isinstance(value, float) and math.isinf(value))


def _cell(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value) if _is_plain(value) else quoted(value, 60)


def _delimited(path: Path, text: str) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    stream = io.StringIO(text, newline="")
    header = text.partition("\n")[0]
    if path.suffix.lower() == ".tsv":
        if "\t" not in header and any(mark in header for mark in DELIMITERS):
            raise DataError(f"{path}:1: no tab stands between its columns.", "If it has commas or semicolons: .csv.")
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(stream, delimiter=max(DELIMITERS, key=header.count), strict=True)
    try:
        columns = tuple(cell.strip() for cell in next(reader, []))
    except csv.Error as error:
        raise DataError(f"{path}:1: {error}.", "The first line names the columns.") from None
    twice = [column for column, times in Counter(columns).items() if times > 1]
    if twice:
        names = ", ".join(quoted(column, 60) for column in twice[:SHOWN])
        raise DataError(f"{path} has two columns {names}.", "Rename or drop one.")
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
