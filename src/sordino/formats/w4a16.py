"""w4a16: the decoder's linear layers in 4 bits, groups of 128, the rest in bfloat16; compressed-tensors, made for vLLM.

Round to nearest with searched scales (quantization/integer.py). Audio encoder, projector, embedding and head stay as
they are: vLLM has kernels for none of them.
"""

from __future__ import annotations

from pathlib import Path

from sordino.formats import packed
from sordino.layouts import tables
from sordino.models import registry, shapes, stored

LOADS_WITH = "vLLM; transformers with compressed-tensors: from_pretrained(path), which unpacks it"


def write(source: str, directory: Path, revision: str | None = None) -> None:
    """source: a 16- or 32-bit model directory, or a Hub id. Raises FamilyError, ArtifactError as packed.write."""
    packed.write(source, directory, bits_of(source, revision), revision=revision)


def bits_of(source: str, revision: str | None = None) -> dict[str, int]:
    """Saved name -> 4, for the decoder's linear layers."""
    config = registry.read_config(str(stored.local(source, revision)))
    return tables.w4a16(shapes.model(config).tensors)
