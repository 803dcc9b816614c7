"""Checkpoints as safetensors files, read a tensor at a time, so that no model is ever held.

stored = Checkpoint.open(Path("model"))              # every header checked: nothing is read from a damaged model
stored.tensors["lm_head.weight"].shape               # names, types, shapes and bytes, from the headers; no torch
stored.read("lm_head.weight")                        # one tensor

A safetensors file is 8 bytes of header length (little-endian), that much JSON {name: {dtype, shape, data_offsets}},
then the tensors, without holes (https://huggingface.co/docs/safetensors). Several files have an index beside them,
model.safetensors.index.json, that names the file of every tensor.

Data is read with plain calls and not through a memory map, whose pages would count as this process's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.errors import ArtifactError

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_LENGTH_BYTES = 8
HEADER_MOST_BYTES = 100_000_000  # the safetensors library refuses longer ones
CHUNK_BYTES = 16 * 2**20  # held at once while copying
# safetensors' name of a type -> (bits, torch's name); in the order in which the library sorts them, the last first
TYPES = {
    "BOOL": (8, "bool"), "F4": (4, ""), "F6_E2M3": (6, ""), "F6_E3M2": (6, ""), "U8": (8, "uint8"), "I8": (8, "int8"),
    "F8_E5M2": (8, "float8_e5m2"), "F8_E4M3": (8, "float8_e4m3fn"), "F8_E8M0": (8, "float8_e8m0fnu"),
    "I16": (16, "int16"), "U16": (16, "uint16"), "F16": (16, "float16"), "BF16": (16, "bfloat16"),
    "I32": (32, "int32"), "U32": (32, "uint32"), "F32": (32, "float32"), "C64": (64, "complex64"),
    "F64": (64, "float64"), "I64": (64, "int64"), "U64": (64, "uint64"),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors header. dtype: as the file spells it ('BF16'); bytes: size of its data.

    start: where in the file its data begins.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    start: int = field(default=0, compare=False)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(file: Path) -> dict[str, Tensor]:
    """Name -> type, shape and place of each tensor. Raises ArtifactError, naming the file, for one that is truncated
    or damaged: a header that does not fit, tensors that overlap, leave holes, or end elsewhere than the file does."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(HEADER_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        start = HEADER_LENGTH_BYTES + length  # of the tensor data, in bytes
        if len(prefix) < HEADER_LENGTH_BYTES or start > size or length > HEADER_MOST_BYTES:
            raise damaged(file, f"its header does not fit its {size} bytes")
        raw = stream.read(length)
    try:
        entries = json.loads(raw, object_pairs_hook=_distinct)
        entries.pop("__metadata__", None)
        places = {name: (*entry["data_offsets"],) for name, entry in entries.items()}
        found = {
            name: Tensor(str(entry["dtype"]), tuple(entry["shape"]), places[name][1] - places[name][0], start + first)
            for name, entry in entries.items()
            for first in places[name][:1]
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(file, f"its header is not that of a safetensors file ({error})") from error
    end = start
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if tensor.dtype not in TYPES:
            raise damaged(file, f"'{name}' is of an unknown type {tensor.dtype!r}")
        if any(type(n) is not int or n < 0 for n in (*tensor.shape, *places[name])):
            raise damaged(file, f"the shape or place of '{name}' is no size")
        if tensor.elements * TYPES[tensor.dtype][0] != 8 * tensor.bytes:
            raise damaged(file, f"'{name}' has {tensor.bytes} bytes, which its type and shape do not make")
        if tensor.start != end:
            raise damaged(file, f"'{name}' does not begin where the tensor before it ends")
        end += tensor.bytes
    if end != size:
        raise damaged(file, f"it has {size} bytes where its header describes {end}")
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def damaged(file: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{file} is truncated or damaged: {why}.", "Copy the file or run its stage again.")


def read_index(file: Path) -> dict[str, str]:
    """Tensor -> name of its file, of a model.safetensors.index.json. Raises ArtifactError for anything else."""
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{file} is not valid JSON ({error}).", "Copy or make the model again.") from error
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise ArtifactError(f"{file} has no weight_map.", "Copy or make the model again.")
    for name in found.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ArtifactError(f"{file} names a shard {name!r}, which is no file beside it.", "Copy the model again.")
    return found


@dataclass(frozen=True)
class Checkpoint:
    """A model directory's weights on disk. files: model.safetensors, or the shards of the index; tensors: by name."""

    directory: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    file_of: Mapping[str, Path]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Read and check every header.

        Raises ArtifactError, naming the file, where there are no weights, a shard is missing, truncated or damaged,
        holds other tensors than the index says, or one that another shard holds too.
        """
        index = directory / INDEX
        weight_map = None
        files: tuple[Path, ...]
        if (directory / SINGLE).is_file():  # as transformers: it goes before an index
            files = (directory / SINGLE,)
        elif index.is_file():
            weight_map = read_index(index)
            files = tuple(directory / name for name in sorted(set(weight_map.values())))
        else:
            raise ArtifactError(
                f"{directory} holds neither {SINGLE} nor {INDEX}.", "Give a model saved with safetensors."
            )
        for file in files:
            if not file.is_file():
                raise ArtifactError(f"{file} is missing, and {INDEX} needs it.", "Copy the model again.")
        headers = {file: read_header(file) for file in files}
        if weight_map is not None:
            for file, header in headers.items():
                promised = {name for name, shard in weight_map.items() if shard == file.name}
                for name in sorted(promised ^ header.keys()):
                    what = "lacks" if name in promised else "holds"
                    raise ArtifactError(
                        f"{file} {what} '{name}', and {INDEX} says otherwise.",
                        "The shards are not of one model: copy all of it again.",
                    )
        return cls(directory, files, _merged(headers), {name: f for f, header in headers.items() for name in header})

    @property
    def bytes(self) -> int:
        """Of all tensors, without the headers."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    def as_stored(self, name: str) -> bool:
        """Whether a tensor's bytes are those in its file."""
        return True

    def chunks(self, name: str, size: int = CHUNK_BYTES) -> Iterator[bytearray]:
        """A tensor's data in pieces of `size` bytes, the last one shorter."""
        tensor = self.tensors[name]
        yield from _pieces(self.file_of[name], tensor.start, tensor.bytes, size)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor in memory of its own, or its rows from the first to before the second along dimension 0."""
        import torch

        tensor = self.tensors[name]
        shape, start, size = tensor.shape, tensor.start, tensor.bytes
        if rows is not None:
            first, last = rows
            if not 0 <= first <= last <= shape[0]:
                raise ValueError(f"rows {first} to {last} of {shape[0]}")
            row = size // shape[0] if shape[0] else 0
            shape, start, size = (last - first, *shape[1:]), start + first * row, (last - first) * row
        if not size:
            return torch.empty(shape, dtype=torch_type(tensor.dtype))
        data = next(_pieces(self.file_of[name], start, size, size))
        return torch.frombuffer(data, dtype=torch_type(tensor.dtype)).reshape(shape)


def read_headers(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of several files. Raises ArtifactError for a damaged one and for a tensor that two of them hold."""
    return _merged({file: read_header(file) for file in files})


def _merged(headers: Mapping[Path, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file, header in headers.items():
        for name in header:
            if name in found:
                raise ArtifactError(f"{file} stores '{name}' a second time.", "Remove the weights left from elsewhere.")
        found |= header
    return found


def _pieces(file: Path, start: int, size: int, at_once: int) -> Iterator[bytearray]:
    """Raises ArtifactError where the file ends early: it was replaced while it was read."""
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while size:
            piece = bytearray(min(at_once, size))
            view, got = memoryview(piece), 0
            while got < len(piece):  # one call gives 2 GiB at most
                more = stream.readinto(view[got:])
                if not more:
                    raise damaged(file, "it ends before its tensors do")
                got += more
            size -= got
            yield piece


def torch_type(dtype: str) -> torch.dtype:
    """Raises ArtifactError for a type that torch does not have."""
    import torch

    found = getattr(torch, TYPES[dtype][1], None) if TYPES[dtype][1] else None
    if not isinstance(found, torch.dtype):
        raise ArtifactError(f"torch has no type for tensors of {dtype}.", "Give a 16-bit or 32-bit model.")
    return found
