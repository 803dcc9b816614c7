"""Headers of GGUF files, which llama.cpp reads. No torch, and no tensor is loaded.

A file is "GGUF", version, number of tensors and of keys; the keys with their types and values; of every tensor its
name, its dimensions (the row's length first), type and place; then, from the next multiple of the alignment, the data,
each tensor aligned (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

A quantized row is a row of blocks. Q8_0 and Q4_0 hold 32 weights and a 16-bit scale; the K types hold 256, with scales
of scales.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sordino.checkpoint.reading import Tensor, damaged
from sordino.errors import ArtifactError
from sordino.runtime import foreign
from sordino.runtime.terminal import printable

MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT = 32  # bytes, unless a key says otherwise
# ggml's number -> (name, weights of a block, its bytes)
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
}  # fmt: skip
BLOCKS = {name: (weights, size) for name, weights, size in TYPES.values()}
FIXED = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
MOST_DIMENSIONS = 4  # ggml's
MOST_STRING_BYTES = 2**24
STRING, ARRAY = 8, 9  # types of keys beside those of fixed length


@dataclass(frozen=True)
class Header:
    """keys: an array is its length alone. tensors: shapes as torch has them, the row's length last."""

    keys: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_header(file: Path) -> Header:
    """Raises ArtifactError for a file that is no GGUF, is truncated or damaged, or holds types not known here."""
    with foreign.reading(file, raises=ArtifactError) as stream:
        size = file.stat().st_size
        if stream.read(4) != MAGIC:
            raise damaged(file, "it does not begin as a GGUF file does")
        try:
            version, tensors, keys = struct.unpack("<IQQ", _take(stream, 20, size))
            if version not in VERSIONS:
                raise ArtifactError(f"{file} is a GGUF file of version {version}.", f"Versions known: {VERSIONS}.")
            values = {_string(stream, size): _value(stream, size) for _ in range(keys)}
            entries = [_entry(stream, size) for _ in range(tensors)]
        except ValueError as error:  # of decoding too
            raise damaged(file, f"its header is not that of a GGUF file ({error})") from error
        alignment = values.get("general.alignment", ALIGNMENT)
        start = aligned(stream.tell(), alignment if isinstance(alignment, int) and alignment > 0 else ALIGNMENT)
    placed: dict[str, Tensor] = {}
    for raw_name, shape, kind, offset in entries:
        name = printable(raw_name)
        if kind not in TYPES:
            raise ArtifactError(f"{file}: '{name}' is of type {kind}, which is not known here.", "Use a newer sordino.")
        if raw_name in placed:
            raise damaged(file, f"'{name}' stands there twice")
        dtype, weights, _ = TYPES[kind]
        if not shape or shape[-1] % weights:
            raise damaged(file, f"'{name}' has rows that are no blocks of {dtype}")
        placed[raw_name] = Tensor(dtype, shape, bytes_of(dtype, shape), start + offset)
        if placed[raw_name].start + placed[raw_name].bytes > size:
            raise damaged(file, f"it has {size} bytes, and '{name}' ends behind them")
    return Header(values, placed)


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Of a tensor whose rows are whole blocks."""
    weights, size = BLOCKS[dtype]
    total = size
    for length in shape:
        total *= length
    return total // weights


def _entry(stream: BinaryIO, size: int) -> tuple[str, tuple[int, ...], int, int]:
    """A tensor's name, shape, type and offset."""
    name = _string(stream, size)
    (dims,) = struct.unpack("<I", _take(stream, 4, size))
    if dims > MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {dims} dimensions")
    *shape, kind, offset = struct.unpack(f"<{dims}QIQ", _take(stream, 8 * dims + 12, size))
    return name, tuple(reversed(shape)), kind, offset


def _value(stream: BinaryIO, size: int) -> Any:
    (kind,) = struct.unpack("<I", _take(stream, 4, size))
    if kind in FIXED:
        return struct.unpack(FIXED[kind], _take(stream, struct.calcsize(FIXED[kind]), size))[0]
    if kind == STRING:
        return _string(stream, size)
    if kind != ARRAY:
        raise ValueError(f"a key of type {kind}")
    inner, count = struct.unpack("<IQ", _take(stream, 12, size))
    if inner in FIXED:
        _skip(stream, struct.calcsize(FIXED[inner]) * count, size)
    elif inner == STRING:
        for _ in range(count):
            _skip(stream, int.from_bytes(_take(stream, 8, size), "little"), size)
    else:
        raise ValueError(f"an array of type {inner}")
    return count


def _skip(stream: BinaryIO, count: int, size: int) -> None:
    if count > size - stream.tell():
        raise ValueError("it ends inside")
    stream.seek(count, 1)


def _string(stream: BinaryIO, size: int) -> str:
    (length,) = struct.unpack("<Q", _take(stream, 8, size))
    if length > MOST_STRING_BYTES:
        raise ValueError(f"a text of {length:,} bytes")
    return _take(stream, length, size).decode("utf-8")


def _take(stream: BinaryIO, count: int, size: int) -> bytes:
    """Raises ValueError where the file ends before."""
    if count > size - stream.tell():
        raise ValueError("it ends inside")
    return stream.read(count)


def aligned(count: int, to: int = ALIGNMENT) -> int:
    """The next multiple."""
    return count + -count % to
