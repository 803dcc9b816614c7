"""merge: fold the adapter into the 16-bit model it was trained on; merging into 4-bit weights would round twice."""

from __future__ import annotations

import torch

from sordino.compress import lora
from sordino.stages.job import Job, Stage, directory_of, qlora_start
from sordino.stages.learning import save_16bit


def run(job: Job) -> None:
    # summed in float32, rounded to 16 bits once, by save_16bit
    speech = job.load(qlora_start(job.recipe), dtype=torch.float32)
    lora.load(speech, job.path_of("adapter"))
    lora.merge(speech)
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
