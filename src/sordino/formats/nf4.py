"""nf4: bitsandbytes 4-bit NormalFloat with double quantization, everything else in bfloat16, nothing in float32.

One matrix at a time is in memory; what stock transformers writes of a model that it quantized while loading is the
same tensors (tests/formats/test_nf4.py).
"""

from __future__ import annotations

from pathlib import Path

import torch

from sordino.checkpoint.writing import Planned, Writer
from sordino.models import nf4, stored
from sordino.runtime.progress import byte_bar

LOADS_WITH = "transformers with bitsandbytes: from_pretrained(path); the stored config does the rest"


def write(source: str, directory: Path, revision: str | None = None) -> None:
    """source: a 16- or 32-bit model directory, or a Hub id.

    Raises FamilyError for one that is quantized already (rounding twice is worse than once) or is not what its
    config says, and rows that are no whole blocks; ArtifactError for damaged shards.
    """
    model = stored.open_model(source, revision)
    family, checkpoint = model.speech.family, model.checkpoint
    linears = nf4.linears(family, model.speech.model)
    nf4.refuse_split_blocks(family, linears)
    packed = {family.tensors.saved_name(f"{name}.weight") for name in linears}
    sources = model.sources()
    planned: dict[str, Planned] = {}
    for name, origin in sources.items():
        if name in packed:
            shapes = nf4.nf4_shapes(checkpoint.tensors[origin].shape)
            planned |= {name + suffix: Planned(*each) for suffix, each in shapes.items()}
        else:
            planned[name] = stored.planned_16bit(checkpoint, origin)
    model.describe(directory, nf4.nf4_config(family, torch.bfloat16))
    total = sum(checkpoint.tensors[origin].bytes for origin in sources.values())
    with Writer(directory, planned) as out, byte_bar("nf4", total) as advance:
        for name, origin in sources.items():
            if name in packed:
                weight = model.read(origin).to(torch.bfloat16)
                for suffix, tensor in nf4.nf4_tensors(weight).items():
                    out.write(name + suffix, tensor)
            else:
                out.copy(name, checkpoint, origin)
            advance(checkpoint.tensors[origin].bytes)
