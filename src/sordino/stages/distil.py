"""distil: heal the pruned student on authentic and teacher's translations.

heal: once trains the pruned model; heal: each starts from the teacher and trains after every single removal, which is
the ablation that costs more and gains nothing in the paper.
"""

from __future__ import annotations

import dataclasses

from sordino.config.schema import DistilSection, Recipe
from sordino.pipeline.fitting import RESUMABLE, fit, mixed, save_16bit
from sordino.pipeline.job import DATA, PSEUDO, RANKING, Job, Stage, device_of, directory_of, teacher_key
from sordino.pruning import search
from sordino.stages.prune import prune, removal_order
from sordino.training.trainer import freeze, weight_dtype


def run(job: Job) -> None:
    section = job.recipe.distil
    assert section
    clips = mixed(job, section.mix)
    dtype = weight_dtype(section, device_of(job.recipe.device))
    if section.heal == "once":
        speech = job.load("pruned", dtype=dtype)
        freeze(speech, section)
        fit(job, speech, clips, section, "healing the student")
    else:
        speech = job.load(teacher_key(job.recipe), dtype=dtype)
        freeze(speech, section)
        removed: list[search.Layer] = []
        for layer in removal_order(job):
            prune(speech, [search.renumbered(layer, removed)])
            removed.append(layer)
            fit(job, speech, clips, section, f"healing without {layer}", f"-{len(removed)}")
    save_16bit(speech, job.out)
    job.describe(job.out)


def parents(recipe: Recipe) -> list[str]:
    section = recipe.distil
    assert isinstance(section, DistilSection)
    start = ["40-pruned"] if section.heal == "once" else [directory_of(teacher_key(recipe)), RANKING]
    return [*start, DATA, *([PSEUDO] if section.mix.pseudo else [])]


def settings(recipe: Recipe) -> dict[str, object] | None:
    """The section, and for heal: each the number of removals, which prune would otherwise have applied."""
    if recipe.distil is None:
        return None
    found = dataclasses.asdict(recipe.distil)
    if recipe.distil.heal == "each" and recipe.prune:
        found["remove"] = recipe.prune.remove
    return found


STAGE = Stage(
    name="distil",
    directory="60-student",
    section=settings,
    parents=parents,
    run=run,
    uses=("source", "target", "prompt", "seed", "attention"),
    resumable=RESUMABLE,
)
