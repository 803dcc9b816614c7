"""Data sets of the Hub as parquet shards with the audio inside, read without torchcodec or the datasets library.

A row's `audio` is a struct of `bytes` (a whole audio file) and `path` (its name). A Clip points to a file, so the bytes
of each row are written out once, as they are; rows are streamed, so no more than a batch of them is in memory.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sordino.errors import DataError

BATCH_ROWS = 16  # clips of up to a megabyte each
MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff": ".mp3"}


def reader(file: Path) -> Any:
    """An open pyarrow ParquetFile; DataError where pyarrow is missing or the file is damaged."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{file.name} is parquet, and reading that needs pyarrow, which is not installed.",
            "Run: pip install '.[hub]'",
        ) from None
    try:
        return parquet.ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}.", "Fetch it again.") from None


def rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one shard, streamed; DataError where the shard is damaged."""
    from pyarrow import ArrowException

    shard = reader(file)
    try:
        for batch in shard.iter_batches(batch_size=BATCH_ROWS, columns=list(columns)):
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} is damaged: {error}.", "Fetch it again.") from None
    finally:
        shard.close()


def unpack(audio: object, folder: Path, name: str) -> Path:
    """Write a row's audio bytes to folder/name.<suffix>, once; DataError for a row without any."""
    data = audio.get("bytes") if isinstance(audio, dict) else None
    if not data:
        raise DataError("the row holds no audio bytes.", "Fetch the data set with its audio embedded.")
    suffix = next((ending for start, ending in MAGIC.items() if data.startswith(start)), ".audio")
    path = folder / (name + suffix)
    if path.is_file() and path.stat().st_size == len(data):
        return path  # of an interrupted run
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
