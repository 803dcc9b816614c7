"""The device that a recipe names. What needs no answer from torch is answered without importing it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.errors import RecipeError

if TYPE_CHECKING:
    import torch

# below /dev, of the accelerators that torch drives: CUDA (on a board, in WSL), ROCm, graphics, Gaudi, Ascend
NODES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd", "dri", "accel*", "davinci*")


def device_of(name: str) -> torch.device:
    """The device to run on. Raises RecipeError for one that torch does not know or this machine does not have."""
    import torch

    from sordino.models import devices

    try:
        device = devices.default_device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RecipeError(f"device: '{name}' cannot be used here ({reason}).", "Use auto or cpu.") from error
    return device


def device_type(name: str) -> str:
    """cpu, cuda, ...: as `device_of`, which is asked only where the machine may have an accelerator."""
    if name == "cpu" or (name == "auto" and not may_have_accelerator()):
        return "cpu"
    return device_of(name).type


def may_have_accelerator() -> bool:
    """Whether a device node speaks for an accelerator; no other system than Linux says so by nodes."""
    return sys.platform != "linux" or any(next(Path("/dev").glob(node), None) for node in NODES)
