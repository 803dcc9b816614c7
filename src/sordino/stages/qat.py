"""qat: train the model through the rounding of its export, and store it so (quantization-aware training).

Bits are chosen for the budget on the model before, as format mixed chooses them. Then the rounded encoder may be healed
by matching the states of the one before, and the whole is trained on texts like a student. What is written is what was
trained: the stage's model is the export.
"""

from __future__ import annotations

import shutil
from typing import Any

from sordino.config import chain
from sordino.config.run_layout import DATA, PSEUDO, QAT, TEACHER
from sordino.config.schema import QatSection, Recipe
from sordino.formats.registry import MIXED
from sordino.pipeline.stage import RESUMABLE_TRAINING, Job, Stage


def run(job: Job, section: QatSection) -> None:
    from sordino.formats import nf4, packed
    from sordino.models import saving
    from sordino.pipeline import exporting, fitting, matching
    from sordino.pipeline.mixed_precision import MixedPrecision, limit_of
    from sordino.pipeline.teacher_logits import teacher_logits
    from sordino.quantization import straight_through

    key = chain.start_of(job.recipe, chain.QAT)
    clips = fitting.mixed(job, section.mix)
    teacher = teacher_logits(job, section.logits, clips, key)
    bits: dict[str, int] = {}
    facts: dict[str, Any] = {}
    if section.format == MIXED:
        limit = limit_of(job.recipe, section.budget_gb, section.budget_ratio)
        bits, facts[MIXED] = MixedPrecision(job, key, section.sensitivity).allocate(limit)
    speech = fitting.load_to_train(job, key, section)
    if section.format == MIXED:
        roundings = straight_through.attach_integers(speech, bits)
    else:
        straight_through.attach_nf4(speech)
    if section.match:
        matching.match(job, speech, clips, section.match, key)
    fitting.fit(job, speech, clips, section, "training through the rounding", teacher=teacher)
    straight_through.detach(speech)
    trained = job.state / "trained"  # before rounding, in the type it was trained in
    shutil.rmtree(trained, ignore_errors=True)
    saving.save(speech, trained)
    if section.format == MIXED:
        packed.write(str(trained), job.out, bits, rounder=lambda name, weight, _: roundings[name].codes(weight))
    else:
        nf4.write(str(trained), job.out)
    shutil.rmtree(trained)
    exporting.audit(job, section.format, job.out, facts)


def parents(recipe: Recipe) -> list[str]:
    section = recipe.qat
    assert section
    model = chain.directory_of(chain.start_of(recipe, chain.QAT))
    beside = [*([PSEUDO] if section.mix.pseudo else []), *([TEACHER] if section.logits.weight else [])]
    return list(dict.fromkeys([model, DATA, *beside]))


STAGE = Stage(
    name="qat",
    directory=QAT,
    section=lambda recipe: recipe.qat,
    parents=parents,
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention", "encode_batch"),
    resumable=RESUMABLE_TRAINING,
)
