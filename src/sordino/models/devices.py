"""Where a model runs and in which floating type, where nobody says."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def default_device(device: str = "auto") -> torch.device:
    """'auto' takes the accelerator torch reports, else the CPU."""
    if device != "auto":
        return torch.device(device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device(accelerator.type) if accelerator is not None else torch.device("cpu")


def default_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 on an accelerator and float32 on a CPU.

    Not every CPU multiplies bfloat16 fast (with AVX2 alone it is about five times slower than float32), and
    one rule for all of them keeps a recipe's results the same from machine to machine.
    """
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.float32 if device.type == "cpu" else torch.bfloat16
