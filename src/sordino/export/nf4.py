"""nf4: bitsandbytes 4-bit NormalFloat with double quantisation, everything else in bfloat16, nothing in float32."""

from __future__ import annotations

from pathlib import Path

from sordino.compress.quantize import save_nf4

LOADS_WITH = "transformers with bitsandbytes: from_pretrained(path); the stored config does the rest"


def write(source: str, directory: Path, revision: str | None = None) -> None:
    """source: a 16- or 32-bit model directory, or a Hub id. Raises FamilyError for one that does not load."""
    save_nf4(source, directory, revision=revision)
