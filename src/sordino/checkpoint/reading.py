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
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.errors import ArtifactError
from sordino.runtime import foreign
from sordino.runtime.terminal import printable, quoted

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STEM = "model"  # what the names of a whole model's files begin with
# of what torch runs beside a decoder for llama.cpp: stock loading must not find it, or it would make up the decoder
ENCODER_STEM = "encoder"
HEADER_LENGTH_BYTES = 8
MOST_DIMENSIONS = 64  # torch's
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
    with foreign.reading(file, raises=ArtifactError) as stream:
        size = file.stat().st_size
        prefix = stream.read(HEADER_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        start = HEADER_LENGTH_BYTES + length  # of the tensor data, in bytes
        if len(prefix) < HEADER_LENGTH_BYTES or start > size or length > HEADER_MOST_BYTES:
            raise damaged(file, f"its header does not fit its {size} bytes")
        raw = stream.read(length)
    try:
        entries = json.loads(raw, object_pairs_hook=_distinct)
        entries.pop("__metadata__", None)
        tensors = {name: _entry(entry, start) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise damaged(file, f"its header is not that of a safetensors file ({error})") from error
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].bytes)):
        shown = printable(name)
        if tensor.dtype not in TYPES:
            raise damaged(file, f"'{shown}' is of an unknown type {quoted(tensor.dtype, 60)}")
        sizes = (*tensor.shape, tensor.start, tensor.bytes)
        if len(tensor.shape) > MOST_DIMENSIONS or any(not 0 <= n < 2**63 for n in sizes):
            raise damaged(file, f"the shape or place of '{shown}' is no size")
        if tensor.elements * TYPES[tensor.dtype][0] != 8 * tensor.bytes:
            raise damaged(file, f"'{shown}' has {tensor.bytes} bytes, which its type and shape do not make")
        if tensor.start != end:
            raise damaged(file, f"'{shown}' does not begin where the tensor before it ends")
        end += tensor.bytes
    if end != size:
        raise damaged(file, f"it has {size} bytes where its header describes {end}")
    return tensors


def _entry(entry: Any, start: int) -> Tensor:
    """A tensor as a header describes it. Raises ValueError, TypeError or KeyError for what describes none."""
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if any(type(n) is not int for n in (*shape, first, last)):
        raise ValueError("a shape or place is no size")
    return Tensor(str(entry["dtype"]), shape, last - first, start + first)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands there twice")
    return entries


def names_of(stem: str) -> tuple[str, str]:
    """Names of the weights' file, and of the index where there are several."""
    return f"{stem}.safetensors", f"{stem}.safetensors.index.json"


def damaged(file: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{file} is truncated or damaged: {why}.", "Copy the file or run its stage again.")


def read_index(file: Path) -> dict[str, str]:
    """Tensor -> name of its file, of a model.safetensors.index.json. Raises ArtifactError for anything else."""
    remedy = "Copy or make the model again."
    index = foreign.read_json_value(file, raises=ArtifactError, remedy=remedy)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ArtifactError(f"{file} has no weight_map.", remedy)
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ArtifactError(f"{file} names a shard {quoted(name)}, which is no file beside it.", remedy)
    return weight_map


@dataclass(frozen=True)
class Checkpoint:
    """A model directory's weights on disk. files: model.safetensors, or the shards of the index; tensors: by name."""

    directory: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    file_of: Mapping[str, Path]

    @classmethod
    def open(cls, directory: Path, stem: str = STEM) -> Checkpoint:
        """Read and check every header. stem: what the files' names begin with.

        Raises ArtifactError, naming the file, where there are no weights, a shard is missing, truncated or damaged,
        holds other tensors than the index says, or one that another shard holds too.
        """
        single, index = (directory / name for name in names_of(stem))
        weight_map = None
        files: tuple[Path, ...]
        if os.path.lexists(single):  # as transformers: it goes before an index
            files = (single,)
        elif os.path.lexists(index):
            weight_map = read_index(index)
            files = tuple(directory / name for name in sorted(set(weight_map.values())))
        else:
            raise ArtifactError(
                f"{directory} holds neither {single.name} nor {index.name}.", "Give a model saved with safetensors."
            )
        for file in files:
            if not os.path.lexists(file):
                raise ArtifactError(f"{file} is missing, and {index.name} needs it.", "Copy the model again.")
        headers = {file: read_header(file) for file in files}
        if weight_map is not None:
            _compare(weight_map, headers, index.name)
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


def _compare(weight_map: Mapping[str, str], headers: Mapping[Path, Mapping[str, Tensor]], index: str) -> None:
    """Raise ArtifactError where a shard's header and the index disagree about what it holds."""
    promised: dict[str, set[str]] = defaultdict(set)
    for name, shard in weight_map.items():
        promised[shard].add(name)
    for file, header in headers.items():
        for name in sorted(promised[file.name] ^ header.keys()):
            what = "lacks" if name in promised[file.name] else "holds"
            problem = f"{file} {what} '{printable(name)}', and {index} says otherwise."
            raise ArtifactError(problem, "The shards are not of one model: copy all of it again.")


def read_headers(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of several files. Raises ArtifactError for a damaged one and for a tensor that two of them hold."""
    return _merged({file: read_header(file) for file in files})


def _merged(headers: Mapping[Path, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file, header in headers.items():
        for name in header.keys() & tensors.keys():
            problem = f"{file} stores '{printable(name)}' a second time."
            raise ArtifactError(problem, "Remove the weights left from elsewhere.")
        tensors |= header
    return tensors


def _pieces(file: Path, start: int, size: int, at_once: int) -> Iterator[bytearray]:
    """Raises ArtifactError where the file ends early: it was replaced while it was read."""
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while size:
            piece = bytearray(min(at_once, size))
            view, filled = memoryview(piece), 0
            while filled < len(piece):  # one call gives 2 GiB at most
                more = stream.readinto(view[filled:])
                if not more:
                    raise damaged(file, "it ends before its tensors do")
                filled += more
            size -= filled
            yield piece


def torch_type(dtype: str) -> torch.dtype:
    """Raises ArtifactError for a type that torch does not have."""
    import torch

    own = getattr(torch, TYPES[dtype][1], None) if TYPES[dtype][1] else None
    if not isinstance(own, torch.dtype):
        raise ArtifactError(f"torch has no type for tensors of {dtype}.", "Give a 16-bit or 32-bit model.")
    return own
