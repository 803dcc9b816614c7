"""finetune: full-parameter fine-tuning of the base model on the training split makes the teacher."""

from __future__ import annotations

from sordino.config import chain
from sordino.config.run_layout import DATA, TEACHER
from sordino.config.schema import FinetuneSection
from sordino.pipeline.stage import BASE_MODEL, RESUMABLE_TRAINING, Job, Stage


def run(job: Job, section: FinetuneSection) -> None:
    from sordino.pipeline import fitting

    speech = fitting.load_to_train(job, chain.BASE, section)
    fitting.fit(job, speech, job.clips("train"), section, "training the teacher")
    fitting.save(job, speech)


STAGE = Stage(
    name="finetune",
    directory=TEACHER,
    section=lambda recipe: recipe.finetune,
    parents=lambda _: [BASE_MODEL, DATA],
    run=run,
    uses=("source", "target", "prompt", "seed", "attention", "encode_batch"),
    resumable=RESUMABLE_TRAINING,
)
