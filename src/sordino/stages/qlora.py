"""qlora: low-rank adapters trained on a 4-bit base (Dettmers et al. 2023), rank-stabilised (Kalajdzievski 2023)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sordino.config import chain
from sordino.config.run_layout import ADAPTER, DATA, PSEUDO, TEACHER
from sordino.config.schema import QloraSection, Recipe
from sordino.pipeline.stage import RESUMABLE_TRAINING, Job, Stage


def run(job: Job, section: QloraSection) -> None:
    from sordino.models import adapter_base, adapters
    from sordino.pipeline import fitting
    from sordino.pipeline.teacher_logits import teacher_logits
    from sordino.runtime.world import current

    start = chain.start_of(job.recipe, chain.ADAPTER)
    clips = fitting.mixed(job, section.mix)
    teacher = teacher_logits(job, section.logits, clips, start)
    base = job.model(start)
    job.record[adapter_base.RECORDED] = adapter_base.weights_hash(base.path, base.revision)
    speech = job.load(start, **adapters.base_options(dataclasses.asdict(section)))
    options = adapters.LoraOptions(section.rank, section.alpha, section.rslora, section.dropout, section.scope)
    peft_model = adapters.attach(speech, options, job.recipe.seed)
    fitting.fit(job, speech, clips, section, "training the adapter", teacher=teacher)
    if current().first:
        adapters.save(peft_model, job.out, base_reference(job.recipe, start))
        job.describe(job.out)
    job.record |= {"start": start, "quantize": section.quantize}


def base_reference(recipe: Recipe, start: str) -> str:
    """How the adapter names its base: from its own directory where both lie in the run, so that a run can move."""
    from sordino.models.registry import is_hub_id

    if start != chain.BASE:
        return str(Path("..") / chain.directory_of(start))
    return recipe.model if is_hub_id(recipe.model) else str(Path(recipe.model).absolute())


def parents(recipe: Recipe) -> list[str]:
    section = recipe.qlora
    assert section
    directories = [chain.directory_of(chain.start_of(recipe, chain.ADAPTER)), DATA]
    directories += [*([PSEUDO] if section.mix.pseudo else []), *([TEACHER] if section.logits.weight else [])]
    return list(dict.fromkeys(directories))


STAGE = Stage(
    name="qlora",
    directory=ADAPTER,
    section=lambda recipe: recipe.qlora,
    parents=parents,
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention", "encode_batch"),
    resumable=RESUMABLE_TRAINING,
)
