"""distil: heal the pruned student on authentic and teacher's translations.

heal: once trains the pruned model; heal: each starts from the teacher and trains after every single removal, which is
the ablation that costs more and gains nothing in the paper. logits: the teacher's probabilities are learnt too; it is
closed before the student is loaded.
"""

from __future__ import annotations

from typing import Any

from sordino.config import chain
from sordino.config.run_layout import DATA, PSEUDO, RANKING, STUDENT, TEACHER
from sordino.config.schema import DistilSection, Recipe
from sordino.pipeline.stage import RESUMABLE_TRAINING, Job, Stage
from sordino.pruning.layer import Layer, renumbered
from sordino.pruning.ranking import Ranking


def run(job: Job, section: DistilSection) -> None:
    from sordino.pipeline import fitting, matching
    from sordino.pipeline.teacher_logits import teacher_logits
    from sordino.pruning import removal

    clips = fitting.mixed(job, section.mix)
    teacher = teacher_logits(job, section.logits, clips, start(job.recipe, section))
    speech = fitting.load_to_train(job, start(job.recipe, section), section)
    if section.match:
        matching.match(job, speech, clips, section.match, chain.ranked_model(job.recipe))
    if section.heal == "once":
        fitting.fit(job, speech, clips, section, "healing the student", teacher=teacher)
    else:
        assert job.recipe.prune
        removed: list[Layer] = []
        for layer in Ranking.read(job.layout.ranking).removal_order(job.recipe.prune.remove):
            removal.remove(speech, [renumbered(layer, removed)])
            removed.append(layer)
            fitting.fit(job, speech, clips, section, f"healing without {layer}", f"-{len(removed)}", teacher)
    fitting.save(job, speech)


def start(recipe: Recipe, section: DistilSection) -> str:
    """The model that training begins with."""
    return chain.PRUNED if section.heal == "once" else chain.ranked_model(recipe)


def parents(recipe: Recipe) -> list[str]:
    section = recipe.distil
    assert section
    directories = [chain.directory_of(start(recipe, section))]
    directories += [chain.directory_of(chain.ranked_model(recipe))] if section.match else []
    directories += [] if section.heal == "once" else [RANKING]
    directories += [DATA, *([PSEUDO] if section.mix.pseudo else []), *([TEACHER] if section.logits.weight else [])]
    return list(dict.fromkeys(directories))


def extras(recipe: Recipe) -> dict[str, Any]:
    """For heal: each the number of removals, which prune would otherwise have applied."""
    if recipe.distil and recipe.distil.heal == "each" and recipe.prune:
        return {"remove": recipe.prune.remove}
    return {}


STAGE = Stage(
    name="distil",
    directory=STUDENT,
    section=lambda recipe: recipe.distil,
    parents=parents,
    run=run,
    uses=("source", "target", "prompt", "seed", "attention", "encode_batch"),
    extras=extras,
    resumable=RESUMABLE_TRAINING,
)
