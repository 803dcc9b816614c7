"""The processes that share one training: which one this is, and what they tell each other.

One process is a world of its own, in which nothing is sent. torchrun, or whoever sets its variables, makes larger ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """rank: of this process, from 0; size: processes in all."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of what is worked on together; every item is in exactly one part."""
        return items[self.rank :: self.size]

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes, the same on each of them."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def current() -> World:
    """The world that this process has joined; alone where it has joined none."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def launched_size() -> int:
    """Processes that a launcher (torchrun, srun with torchrun's variables) started beside this one, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
