"""Files that are whole or not there: JSON and text written beside and renamed, JSON Lines appended and flushed, hashes.

What a kill or a power cut interrupts leaves the old file, or whole lines of a progress file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sordino.errors import ArtifactError
from sordino.runtime import foreign
from sordino.runtime.foreign import Types
from sordino.runtime.values import Malformed, parse_json

WHOLE_FILE_BYTES = 256 * 2**20  # files up to this size are hashed whole
SAMPLE_BYTES = 2**20
SAMPLES = 64
AGAIN = "Delete its directory and run the stage again."


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that the file is either the old one or the whole new one, also after a power cut."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write text beside, flush it to disk, rename. Raises OSError, as `explain_os_error` explains it."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def read_json(file: Path, required: Mapping[str, Types] | None = None) -> Any:
    """What a stage wrote. required: keys that an object must have, with the types of their values.

    Raises ArtifactError for a missing or damaged file, and for one that is something else.
    """
    if not file.exists():
        raise ArtifactError(f"{file} is missing.", "Run the stage that makes it again.")
    value = _parsed(foreign.read_text(file, raises=ArtifactError), str(file))
    return value if required is None else require(value, file, required)


def require(value: Any, where: Path | str, required: Mapping[str, Types] | None = None) -> dict[str, Any]:
    """A record that a stage wrote, with these keys. Raises ArtifactError, which names it, for anything else."""
    return foreign.check_object(value, str(where), raises=ArtifactError, remedy=AGAIN, required=required)


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text, finite=False)  # Python writes NaN and Infinity
    except Malformed as error:
        raise ArtifactError(f"{where} is damaged: {error}.", AGAIN) from None


def readable(directory: Path) -> None:
    """Give every file in a directory the rights that a new file has: some libraries write for their owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in directory.rglob("*"):
        if file.is_file() and not file.is_symlink():
            mode = stat.S_IMODE(file.stat().st_mode)
            if mode | (0o666 & ~mask) != mode:
                file.chmod(mode | (0o666 & ~mask))


def fingerprint_file(file: Path) -> str:
    """SHA-256 of a file; above 256 MiB, of its size and 64 evenly spaced samples of 1 MiB, first and last included.

    Whole-file hashes of 16 GB checkpoints would cost minutes at every look; the samples see every truncation,
    every other file and every retraining, though not a few flipped bits in between.
    """
    digest = hashlib.sha256()
    size = file.stat().st_size
    with file.open("rb") as data:
        if size <= WHOLE_FILE_BYTES:
            while block := data.read(SAMPLE_BYTES):
                digest.update(block)
        else:
            digest.update(f"sampled {size}".encode())
            for i in range(SAMPLES):
                data.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(data.read(SAMPLE_BYTES))
    return digest.hexdigest()


def combined(prints: Mapping[str, str]) -> str:
    """One hash of many fingerprints."""
    text = json.dumps(dict(sorted(prints.items())))
    return hashlib.sha256(text.encode()).hexdigest()


def append_jsonl(file: Path, *rows: Mapping[str, Any]) -> None:
    """Append lines and flush them to disk: a long stage's progress."""
    with file.open("a", encoding="utf-8") as out:
        out.write("".join(json_line(row) + "\n" for row in rows))
        out.flush()
        os.fsync(out.fileno())


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """Finished lines of a progress file; a last line torn by a kill is cut off the file."""
    if not file.is_file():
        return []
    data = file.read_bytes()
    whole, torn, rest = data.rpartition(b"\n")
    if rest:
        with file.open("r+b") as out:
            out.truncate(len(whole) + len(torn))
    try:
        lines = whole.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{file} is damaged: {error}.", AGAIN) from None
    places = ((f"{file}:{number}", line) for number, line in enumerate(lines, start=1) if line)
    return [require(_parsed(line, where), where) for where, line in places]


def json_line(row: Mapping[str, Any]) -> str:
    """One JSON object on one line, as all of sordino's JSONL files have them."""
    return json.dumps(row, ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value as JSON would give it back: tuples are lists."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
