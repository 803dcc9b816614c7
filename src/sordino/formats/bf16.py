"""bf16: the model as stock transformers loads it anywhere, in 16 bits, copied a tensor at a time."""

from __future__ import annotations

from pathlib import Path

from sordino.models import stored

LOADS_WITH = "transformers: from_pretrained(path, dtype='bfloat16')"


def write(source: str, directory: Path, revision: str | None = None) -> None:
    """source: a 16- or 32-bit model directory, or a Hub id. Raises FamilyError, ArtifactError for a damaged one."""
    stored.open_model(source, revision).write_16bit(directory, "bf16")
