"""Checkpoints as safetensors files, written a tensor at a time, in one file or in shards.

planned = {name: Planned("BF16", tensor.shape) for name, tensor in stored.tensors.items()}
with Writer(Path("copy"), planned) as out:           # places every tensor beforehand
    for name in planned:
        out.copy(name, stored, name)                 # byte for byte, or cast where the plan names another type
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.checkpoint.finite import refuse_nonfinite
from sordino.checkpoint.reading import (
    CHUNK_BYTES,
    HEADER_LENGTH_BYTES,
    STEM,
    TYPES,
    Checkpoint,
    Tensor,
    names_of,
    torch_type,
)
from sordino.errors import ArtifactError

if TYPE_CHECKING:
    import torch

HEADER_ALIGNMENT = 8  # bytes; the header is padded with spaces
SHARD_BYTES = 5 * 10**9  # of one file's tensors, at most, unless one tensor is larger
LATE_BYTES = 999  # room in the header for a tensor whose length is not known before it is written
ORDER = {name: -i for i, name in enumerate(TYPES)}
FLOATING = ("F16", "BF16", "F32", "F64")  # types that a plan may cast into each other


@dataclass(frozen=True)
class Planned:
    """A tensor to be written. shape: None for a small vector whose length shows only when it is written."""

    dtype: str
    shape: tuple[int, ...] | None

    @property
    def bytes(self) -> int:
        """Of its data; of one without a shape, the most that is allowed."""
        return LATE_BYTES if self.shape is None else math.prod(self.shape) * TYPES[self.dtype][0] // 8


def place(planned: Mapping[str, Planned], start: int = 0) -> dict[str, Tensor]:
    """Where each tensor of one file lies, in the file's order, as the safetensors library has it: wider types first,
    then by name. Those of unknown length come last. start: of the first one's data."""
    placed = {}
    for name in sorted(planned, key=lambda n: (planned[n].shape is None, ORDER[planned[n].dtype], n)):
        entry = planned[name]
        placed[name] = Tensor(entry.dtype, entry.shape or (entry.bytes,) * (entry.shape is None), entry.bytes, start)
        start += entry.bytes
    return placed


def header(placed: Mapping[str, Tensor], least: int = 0) -> bytes:
    """Length and JSON as they stand at a file's beginning; padded with spaces to a multiple of 8, and to `least`."""
    first = min((tensor.start for tensor in placed.values()), default=0)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, tensor in placed.items():
        offsets = [tensor.start - first, tensor.start - first + tensor.bytes]
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(max(least - HEADER_LENGTH_BYTES, len(text) + -len(text) % HEADER_ALIGNMENT))
    return len(text).to_bytes(HEADER_LENGTH_BYTES, "little") + text


class Writer:
    """Writes a model's weights: one file where they fit into `shard_bytes`, else shards and their index.

    Tensors may come in any order; each is written where it belongs. The bytes depend on the plan and the data alone.
    Leaving the block writes headers and index and flushes everything to disk; until then no file has a header, so
    that a half-written one does not load. stem: what the files' names begin with. Raises ArtifactError where the disk
    has too little room, before writing.
    """

    def __init__(
        self, directory: Path, planned: Mapping[str, Planned], *, shard_bytes: int = SHARD_BYTES, stem: str = STEM
    ) -> None:
        groups = _split(planned, shard_bytes)
        count = len(groups)
        single, index = names_of(stem)
        names = [single] if count == 1 else [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        self.index = directory / index
        for stale in (*directory.glob(f"{stem}*.safetensors"), self.index):  # of a write that was cut short
            stale.unlink(missing_ok=True)
        self.directory, self.planned = directory, planned
        self._shards: list[tuple[Path, dict[str, Tensor]]] = []
        for name, group in zip(names, groups, strict=True):
            room = len(header(place({n: planned[n] for n in group})))
            self._shards.append((directory / name, place({n: planned[n] for n in group}, room)))
        self.bytes = sum(max((t.start + t.bytes for t in placed.values()), default=0) for _, placed in self._shards)
        free = shutil.disk_usage(directory).free
        if self.bytes > free:
            raise ArtifactError(
                f"{directory} has room for {free / 1e9:.2f} GB, and the weights take {self.bytes / 1e9:.2f} GB.",
                "Free some space, or set another directory.",
            )
        self._shard_of = {name: i for i, (_, placed) in enumerate(self._shards) for name in placed}
        self._late: dict[str, bytes] = {}
        self._written: set[str] = set()
        self._open = ExitStack()
        self._handles: list[int] = []

    def __enter__(self) -> Writer:
        for file, _ in self._shards:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            self._open.callback(os.close, handle)
            self._handles.append(handle)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._open:
            if kind is None:
                self._finish()

    def copy(self, name: str, source: Checkpoint, source_name: str) -> None:
        """Write a stored tensor, byte for byte, or rounded to the planned floating type; never held as a whole.

        Raises ValueError where shapes differ, or types that do not cast, FamilyError for NaN and infinity, in what is
        read and in what it is rounded to.
        """
        import torch

        tensor, plan = source.tensors[source_name], self.planned[name]
        if tensor.shape != plan.shape:
            raise ValueError(f"{name} is planned as {plan.shape}, and {source_name} is {tensor.shape}")
        handle, start = self._begin(name)
        if tensor.dtype == plan.dtype and source.as_stored(source_name):
            if tensor.dtype in FLOATING:
                source_type = torch_type(tensor.dtype)
                for piece in source.chunks(source_name, CHUNK_BYTES):
                    refuse_nonfinite(source.directory, [(source_name, torch.frombuffer(piece, dtype=source_type))])
            with source.file_of[source_name].open("rb", buffering=0) as stream:
                _copy(stream.fileno(), tensor.start, handle, start, tensor.bytes)
            return
        if tensor.dtype not in FLOATING or plan.dtype not in FLOATING:
            raise ValueError(f"{source_name} is {tensor.dtype} and cannot become {plan.dtype}")
        before, after = torch_type(tensor.dtype), torch_type(plan.dtype)
        for piece in source.chunks(source_name, CHUNK_BYTES):
            rounded = torch.frombuffer(piece, dtype=before).to(after)
            refuse_nonfinite(source.directory, [(source_name, rounded)])
            start = _put(handle, start, _bytes_of(rounded))

    def write(self, name: str, data: torch.Tensor | Iterable[torch.Tensor]) -> None:
        """Write a tensor, given as a whole or in pieces along its first dimension.

        Raises ValueError where it is not of the planned type and shape.
        """
        import torch

        plan = self.planned[name]
        handle, start = self._begin(name)
        if plan.shape is None:
            if not isinstance(data, torch.Tensor) or data.dim() != 1 or data.nbytes > LATE_BYTES:
                raise ValueError(f"{name} is no vector of at most {LATE_BYTES} bytes")
            self._late[name] = bytes(_bytes_of(data))
            return
        rows = 0
        for piece in [data] if isinstance(data, torch.Tensor) else data:
            whole = piece.shape == plan.shape or (piece.dim() and piece.shape[1:] == plan.shape[1:])
            if piece.dtype != torch_type(plan.dtype) or not whole:
                raise ValueError(f"{name} is planned as {plan}, and not as {piece.dtype} {tuple(piece.shape)}")
            rows += piece.shape[0] if piece.dim() else 1
            if rows > (plan.shape[0] if plan.shape else 1):
                break
            start = _put(handle, start, _bytes_of(piece))
        if rows != (plan.shape[0] if plan.shape else 1):
            raise ValueError(f"{name} is planned with {plan.shape}, and {rows} rows came")

    def _begin(self, name: str) -> tuple[int, int]:
        """The shard to write to and where. Each tensor is written once."""
        if name in self._written:
            raise ValueError(f"{name} is written twice")
        self._written.add(name)
        shard = self._shard_of[name]
        return self._handles[shard], self._shards[shard][1][name].start

    def _finish(self) -> None:
        missing = self.planned.keys() - self._written
        if missing:
            raise ValueError(f"{len(missing)} planned tensors were not written, {min(missing)} among them")
        total = 0
        for handle, (_, placed) in zip(self._handles, self._shards, strict=True):
            room = min((t.start for t in placed.values()), default=0)
            end = max((t.start + t.bytes for n, t in placed.items() if n not in self._late), default=room)
            for name in [n for n in placed if n in self._late]:
                data = self._late[name]
                length = len(data) * 8 // TYPES[self.planned[name].dtype][0]
                placed[name] = Tensor(self.planned[name].dtype, (length,), len(data), end)
                end = _put(handle, end, memoryview(data))
            _put(handle, 0, memoryview(header(placed, room)))
            os.ftruncate(handle, end)  # and not shorter: a last tensor may be empty
            os.fsync(handle)
            total += sum(tensor.bytes for tensor in placed.values())
        if len(self._shards) > 1:
            weight_map = {name: self._shards[shard][0].name for name, shard in sorted(self._shard_of.items())}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            with self.index.open("w", encoding="utf-8") as out:
                out.write(json.dumps(index, indent=2, ensure_ascii=False) + "\n")
                out.flush()
                os.fsync(out.fileno())


def _split(planned: Mapping[str, Planned], most: int) -> list[list[str]]:
    """Names in order, as many to a shard as fit into `most` bytes, and at least one."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(planned):
        if groups[-1] and filled + planned[name].bytes > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += planned[name].bytes
    return groups


def _copy(source: int, at: int, target: int, to: int, size: int) -> None:
    """File to file, in the kernel where it can."""
    while size:
        try:
            done = os.copy_file_range(source, target, min(size, 2**27), at, to)
        except (AttributeError, OSError):  # other systems, and pairs of file systems that cannot: ENOSPC comes again
            done = os.pwrite(target, os.pread(source, min(size, CHUNK_BYTES), at), to)
        if not done:
            raise ArtifactError("A shard became shorter while it was copied.", "Start again.")
        at, to, size = at + done, to + done, size - done


def _put(handle: int, start: int, data: memoryview) -> int:
    """Write all of it; -> where it ends."""
    while data:
        done = os.pwrite(handle, data[: 2**30], start)
        data, start = data[done:], start + done
    return start


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
