"""The processes that share one training: which one this is, and what they tell each other.

One process is a world of its own, in which nothing is sent. torchrun, or whoever sets its variables, makes larger ones.
What is told goes through gloo and the CPU: an accelerator's own backend is for weights and gradients.
"""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from sordino.runtime.environment import launched

Item = TypeVar("Item")
# until others are given up: one may read or write for long; a launcher notices at once that a process has died
PATIENCE = datetime.timedelta(days=7)


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
        self.sum(0.0)

    def told(self, word: str = "") -> str:
        """What the first process says, on all of them."""
        words = [word]
        if self.size > 1:
            dist.broadcast_object_list(words, 0, device=torch.device("cpu"))
        return words[0]


def current() -> World:
    """The world that this process has joined; alone where it has joined none."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def join(device: torch.device) -> World:
    """Join the processes that a launcher started, each with a device of its own; alone where there is no launcher."""
    if launched()[1] > 1 and not dist.is_initialized():
        if device.type == "cpu":
            backend = "gloo"
        else:
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
            backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
        dist.init_process_group(backend, timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    return current()


def join_alone(device: torch.device) -> None:
    """A group of this process alone, for what wants a group; nothing where it has joined one."""
    if not dist.is_initialized():
        backend = "gloo" if device.type == "cpu" else dist.get_default_backend_for_device(device)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        atexit.register(dist.destroy_process_group)
