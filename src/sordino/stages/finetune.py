"""finetune: full-parameter fine-tuning of the base model on the training split makes the teacher."""

from __future__ import annotations

from sordino.data import manifest
from sordino.pipeline.fitting import RESUMABLE, fit, save_16bit
from sordino.pipeline.job import DATA, Job, Stage, device_of
from sordino.training.trainer import freeze, weight_dtype


def run(job: Job) -> None:
    section = job.recipe.finetune
    assert section
    speech = job.load("base", dtype=weight_dtype(section, device_of(job.recipe.device)))
    freeze(speech, section)
    fit(job, speech, manifest.read(job.run_dir / DATA / "train.jsonl"), section, "training the teacher")
    save_16bit(speech, job.out)
    job.describe(job.out)


STAGE = Stage(
    name="finetune",
    directory="20-teacher",
    section=lambda recipe: recipe.finetune,
    parents=lambda _: ["", DATA],
    run=run,
    uses=("source", "target", "prompt", "seed", "attention"),
    resumable=RESUMABLE,
)
