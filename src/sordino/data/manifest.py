"""Manifests: one clip a line, JSON, UTF-8; what the stages hand to each other.

A file is written beside its place, flushed to disk and renamed, so a reader never meets half of one; the same
clips always give the same bytes. Errors on reading name file:line.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.runtime import foreign
from sordino.runtime.terminal import quoted
from sordino.runtime.values import Malformed, parse_json


def read(path: str | Path) -> list[Clip]:
    """All clips of a manifest; raises as `stream` does."""
    return list(stream(path))


def stream(path: str | Path) -> Iterator[Clip]:
    """Clips of a manifest, one at a time, in order; blank lines are passed over.

    Raises DataError, naming file:line, for a missing or empty file, bytes that are not UTF-8, bad JSON, a missing,
    unknown or mistyped field, and an id seen before.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file.", "A manifest is a .jsonl file that `sordino prepare` writes.")
    lines: dict[str, int] = {}  # id -> line
    for number, line in enumerate(foreign.lines(path), start=1):
        if line.strip():
            clip = _parse(line, f"{path}:{number}")
            if clip.id in lines:
                problem = f"{path}:{number}: id {quoted(clip.id)} stands on line {lines[clip.id]} already."
                raise DataError(problem, "Give every clip its own id.")
            lines[clip.id] = number
            yield clip
    if not lines:
        raise DataError(f"{path} holds no clips.", "Run the stage that writes it again.")


def write(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write a manifest atomically, making its directory if need be.

    Raises DataError for no clips or a repeated id: such a manifest could not be read back.
    """
    path = Path(path)
    seen: set[str] = set()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            for clip in clips:
                if clip.id in seen:
                    raise DataError(f"{path}: two clips have the id {quoted(clip.id)}.", "Give every clip its own id.")
                seen.add(clip.id)
                file.write(json.dumps(clip.to_json(), ensure_ascii=False, allow_nan=False).encode() + b"\n")
            if not seen:
                raise DataError(f"{path}: there are no clips to write.")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive a power cut
    finally:
        os.close(directory)


def _parse(line: str, where: str) -> Clip:
    try:
        return Clip.from_json(parse_json(line))
    except Malformed as error:
        remedy = "Each line holds one JSON object; was the file cut?"
        raise DataError(f"{where}: {error}.", remedy) from None
    except DataError as error:
        raise DataError(f"{where}: {error.problem}", error.remedy) from None
