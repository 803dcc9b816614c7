"""Text, JSON and YAML that others wrote, read in one place: what cannot be used is one sentence with file and line.

    config = foreign.read_json(Path("config.json"), raises=FamilyError, required={"model_type": str})
    recipe = foreign.read_yaml(Path("recipe.yaml"), raises=RecipeError)
    for number, row in foreign.read_jsonl(Path("hypotheses.jsonl")): ...

UTF-8, with or without a byte order mark. Refused are: a file that is missing, unreadable, a directory, a link to
itself; another encoding; NUL; and what values.py refuses.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sordino.errors import DataError, SordinoError, explain_os_error
from sordino.runtime.terminal import printable, quoted
from sordino.runtime.values import Malformed, kind_of, parse_json, parse_yaml

MOST_BYTES = 2**30  # of a file that is read as a whole
MOST_LINE_BYTES = 2**26
PIPES = "/dev/", "/proc/"  # where a shell's <(...) lies; elsewhere nobody may be there to write into a pipe
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = b"\xff\xfe", b"\xfe\xff"
Types = type | tuple[type, ...]


@contextmanager
def reading(file: Path, *, raises: type[SordinoError] = DataError) -> Iterator[BinaryIO]:
    """An open file, regular or a shell's pipe. Raises `raises` for anything else, and for errors of the disk."""
    try:
        with _opened(file, raises) as stream:
            yield stream
    except FileNotFoundError:
        raise raises(f"there is no file {_name(file)}.", "Check the path.") from None
    except OSError as error:
        told = explain_os_error(error, file)
        if told is None:
            raise
        raise raises(told.problem, told.remedy) from error


def _opened(file: Path, raises: type[SordinoError]) -> BinaryIO:
    try:
        mode = file.stat().st_mode
    except ValueError as error:
        raise raises(f"{_name(file)} is no path: {error}.", "Check the path.") from None
    if stat.S_ISDIR(mode):
        raise raises(f"{_name(file)} is a directory, not a file.", "Name the file itself.")
    if not stat.S_ISREG(mode) and not (stat.S_ISFIFO(mode) and os.fspath(file).startswith(PIPES)):
        raise raises(f"{_name(file)} is no regular file.", "Name a file.")
    return file.open("rb")


def lines(file: Path, *, raises: type[SordinoError] = DataError) -> Iterator[str]:
    """A text's lines without their ends, one at a time; only a line feed ends one, not what else Unicode knows.

    Raises `raises`, naming file:line, for what is not UTF-8.
    """
    with reading(file, raises=raises) as stream:
        number = 0
        while raw := stream.readline(MOST_LINE_BYTES + 1):
            number += 1
            if len(raw) > MOST_LINE_BYTES:
                problem = f"{_place(file, number)}: a line of more than {MOST_LINE_BYTES:,} bytes."
                raise raises(problem, "Is it the right file?")
            yield _decoded(raw, file, raises, number).removesuffix("\n")


def read_text(file: Path, *, raises: type[SordinoError] = DataError) -> str:
    """A whole text, without a byte order mark. Raises `raises` as `lines` does, and for more than MOST_BYTES."""
    with reading(file, raises=raises) as stream:
        raw = stream.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise raises(f"{_name(file)} is larger than {MOST_BYTES:,} bytes.", "Is it the right file?")
    return _decoded(raw, file, raises)


def read_json(
    file: Path,
    *,
    raises: type[SordinoError] = DataError,
    remedy: str = "Copy or make the file again.",
    required: Mapping[str, Types] | None = None,
    finite: bool = True,
) -> dict[str, Any]:
    """A JSON object. required: keys that it must have, and the types of their values.

    finite: NaN and Infinity, which are no JSON, are refused. Raises `raises` for all that cannot be used.
    """
    record = read_json_value(file, raises=raises, remedy=remedy, finite=finite)
    return check_object(record, _name(file), raises=raises, remedy=remedy, required=required)


def read_json_value(
    file: Path, *, raises: type[SordinoError] = DataError, remedy: str = "", finite: bool = True
) -> Any:
    """As `read_json`, of any kind of value."""
    text = read_text(file, raises=raises)
    try:
        return parse_json(text, finite=finite)
    except Malformed as error:
        raise raises(f"{_place(file, error.line)}: {error.problem}.", remedy) from None


def check_object(
    record: Any, where: str, *, raises: type[SordinoError], remedy: str, required: Mapping[str, Types] | None = None
) -> dict[str, Any]:
    """The record, which must be an object with these keys, of these types. Raises `raises`."""
    if not isinstance(record, dict):
        raise raises(f"{where} must hold a JSON object, and holds {kind_of(record)}.", remedy)
    for key, types in (required or {}).items():
        if key not in record:
            raise raises(f"{where} lacks '{key}'.", remedy)
        if not isinstance(record[key], types):
            raise raises(f"{where}: '{key}' cannot be {quoted(record[key], 100)}.", remedy)
    return record


def read_jsonl(
    file: Path,
    *,
    raises: type[SordinoError] = DataError,
    remedy: str = "Each line holds one JSON object.",
    required: Mapping[str, Types] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a JSON Lines file, one at a time; blank lines are passed over. Raises `raises`."""
    for number, line in enumerate(lines(file, raises=raises), start=1):
        if not line.strip():
            continue
        where = _place(file, number)
        try:
            record = parse_json(line)
        except Malformed as error:
            raise raises(f"{where}: {error.problem}.", remedy) from None
        yield number, check_object(record, where, raises=raises, remedy=remedy, required=required)


def read_yaml(file: Path, *, raises: type[SordinoError] = DataError, remedy: str = "") -> Any:
    """A YAML document of plain values. Raises `raises` for all that cannot be used."""
    text = read_text(file, raises=raises)
    try:
        return parse_yaml(text)
    except Malformed as error:
        raise raises(f"{_place(file, error.line)}: {error.problem}.", remedy) from None


def _decoded(raw: bytes, file: Path, raises: type[SordinoError], line: int = 1) -> str:
    """line: that the bytes begin at."""
    if line == 1:
        if raw.startswith(UTF_16):
            raise raises(f"{_name(file)} is UTF-16.", "Save it as UTF-8.")
        raw = raw.removeprefix(BYTE_ORDER_MARK)
    at = raw.find(b"\0")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start if at < 0 else min(at, error.start)
    if at >= 0:
        what = "NUL, which no text has" if raw[at] == 0 else f"byte 0x{raw[at]:02x}, which is not UTF-8"
        before = raw[:at].rpartition(b"\n")
        where = _place(file, line + raw[:at].count(b"\n"))
        raise raises(f"{where}: {what} (byte {len(before[2]) + 1} of the line).", "Save it as UTF-8.")
    return text


def _name(file: Path) -> str:
    return printable(os.fspath(file))


def _place(file: Path, line: int | None) -> str:
    return f"{_name(file)}:{line}" if line else _name(file)
