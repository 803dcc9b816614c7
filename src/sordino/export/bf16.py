"""bf16: the plain 16-bit checkpoint, without anything that only training needed."""

from __future__ import annotations

from pathlib import Path

import torch

from sordino.families import registry

LOADS_WITH = "transformers: from_pretrained(path, dtype='bfloat16')"


def write(source: str, directory: Path, revision: str | None = None) -> None:
    """source: a 16- or 32-bit model directory, or a Hub id. Raises FamilyError for one that does not load."""
    registry.save(registry.load(source, device="cpu", dtype=torch.bfloat16, revision=revision), directory)
