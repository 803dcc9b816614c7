"""qlora: low-rank adapters trained on a 4-bit base (Dettmers et al. 2023), rank-stabilised (Kalajdzievski 2023)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sordino.config.schema import Recipe
from sordino.models import adapters, registry
from sordino.pipeline.fitting import RESUMABLE, fit, mixed
from sordino.pipeline.job import DATA, PSEUDO, Job, Stage, directory_of, qlora_start

ADAPTER = "61-adapter"


def run(job: Job) -> None:
    section = job.recipe.qlora
    assert section
    start = qlora_start(job.recipe)
    speech = job.load(start, **adapters.base_options(dataclasses.asdict(section)))
    options = adapters.LoraOptions(section.rank, section.alpha, section.rslora, section.dropout, section.scope)
    peft_model = adapters.attach(speech, options, job.recipe.seed)
    fit(job, speech, mixed(job, section.mix), section, "training the adapter")
    adapters.save(peft_model, job.out, base_reference(job.recipe, start))
    job.describe(job.out)
    job.record |= {"start": start, "quantize": section.quantize}


def base_reference(recipe: Recipe, start: str) -> str:
    """How the adapter names its base: from its own directory where both lie in the run, so that a run can move."""
    if start != "base":
        return str(Path("..") / directory_of(start))
    return recipe.model if registry.is_hub_id(recipe.model) else str(Path(recipe.model).absolute())


STAGE = Stage(
    name="qlora",
    directory=ADAPTER,
    section=lambda recipe: recipe.qlora,
    parents=lambda recipe: [
        directory_of(qlora_start(recipe)),
        DATA,
        *([PSEUDO] if recipe.qlora and recipe.qlora.mix.pseudo else []),
    ],
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention"),
    resumable=RESUMABLE,
)
