"""Resume points: the trained weights and what the optimizer remembers as safetensors, the step and the log as JSON.

Each is written beside and renamed, so that the newest one that is there is whole. Sharded weights are written by every
process, in one file each, by torch.distributed.checkpoint in its safetensors form; any number of processes reads them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sordino.runtime.world import World

CHECKPOINT = "step-"
ONE_FILE, FACTS = "state.safetensors", "state.json"


def checkpoints(state: Path) -> list[Path]:
    """Whole resume points, oldest first."""
    return sorted(state.glob(f"{CHECKPOINT}*"))


def write(state: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], world: World) -> None:
    """Write a resume point beside, flush, rename; then drop the older ones. All processes call it.

    tensors: by name; sharded ones are written by all processes, others by the first.
    """
    target = state / f"{CHECKPOINT}{step:08d}"
    beside = state / f".{target.name}.tmp"
    if world.first:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    world.wait()
    if any(map(is_sharded, tensors.values())):
        _write_shards(beside, tensors)
    elif world.first:
        save_file(dict(tensors), beside / ONE_FILE)
    world.wait()
    if world.first:
        (beside / FACTS).write_text(json.dumps(facts))
        for file in beside.iterdir():
            with file.open("rb") as data:
                os.fsync(data.fileno())
        beside.rename(target)
        for old in checkpoints(state):
            if old != target:
                shutil.rmtree(old)
    world.wait()


def facts_of(point: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((point / FACTS).read_text())
    return facts


def read(point: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a resume point, sharded as those of `like` are, that have the same weight in their name.

    like: weight/NAME -> a tensor of the weight's shape.
    """
    alone = not any(map(is_sharded, like.values()))
    if alone and (point / ONE_FILE).exists():
        whole: dict[str, Tensor] = load_file(point / ONE_FILE)
        return whole
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    stored = HuggingFaceStorageReader(str(point)).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for name, facts in stored.items():
        weight = like[f"weight/{name.partition('/')[2]}"]
        size, dtype = facts.size, facts.properties.dtype  # type: ignore[union-attr]
        alike = tuple(size) == tuple(weight.shape)
        tensors[name] = torch.zeros_like(weight, dtype=dtype) if alike else torch.zeros(size, dtype=dtype)
    load(tensors, storage_reader=HuggingFaceStorageReader(str(point)), no_dist=alone)
    return tensors


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a part of one that several processes hold."""
    return hasattr(tensor, "full_tensor")


def _write_shards(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    # without its consolidation nothing but safetensors is written
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True, enable_consolidation=False)
    save(dict(tensors), storage_writer=writer)
