"""merge: fold the adapter into the 16-bit model it was trained on; merging into 4-bit weights would round twice."""

from __future__ import annotations

import torch

from sordino.models import adapters
from sordino.pipeline.fitting import save_16bit
from sordino.pipeline.job import Job, Stage, directory_of, qlora_start


def run(job: Job) -> None:
    # summed in float32, rounded to 16 bits once, by save_16bit
    speech = job.load(qlora_start(job.recipe), dtype=torch.float32)
    adapters.load(speech, job.path_of("adapter"))
    adapters.merge(speech)
    save_16bit(speech, job.out)
    job.describe(job.out)


STAGE = Stage(
    name="merge",
    directory="62-merged",
    section=lambda recipe: recipe.merge,
    parents=lambda recipe: [directory_of("adapter"), directory_of(qlora_start(recipe))],
    run=run,
    uses=("source", "target", "prompt"),
)
