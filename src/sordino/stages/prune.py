"""prune: drop the layers the ranking names and write a checkpoint that stock transformers loads.

The model is not loaded: what is left of it is copied from file to file.
"""

from __future__ import annotations

from sordino.errors import RecipeError
from sordino.models import stored
from sordino.models.speech import SpeechModel
from sordino.pipeline.job import RANKING, Job, Stage, directory_of, teacher_key
from sordino.pruning import layers, search
from sordino.runtime import files
from sordino.runtime.progress import note


def run(job: Job) -> None:
    section = job.recipe.prune
    assert section
    order = removal_order(job)
    key = teacher_key(job.recipe)
    model = stored.open_model(job.path(key), job.recipe.revision if key == "base" else None)
    kept = prune(model.speech, order)
    model.write_16bit(job.out, "copying what is left")
    job.describe(job.out)
    files.write_json(job.out / "kept.json", kept)
    job.record["removed"] = [str(layer) for layer in order]
    note(f"  {len(kept['decoder'])} decoder and {len(kept['encoder'])} encoder layers are left")


def removal_order(job: Job) -> list[search.Layer]:
    """The ranking's removals that this recipe takes. Raises RecipeError where it asks for more than were ranked."""
    section = job.recipe.prune
    assert section
    order = [search.parse_layer(text) for text in files.read_json(job.run_dir / RANKING / "ranking.json")["order"]]
    if section.remove is None:
        return order
    if not 1 <= section.remove <= len(order):
        raise RecipeError(
            f"prune.remove: {section.remove}, but the ranking holds {len(order)} removals.", "Raise rank.remove."
        )
    return order[: section.remove]


def prune(speech: SpeechModel, removed: list[search.Layer]) -> dict[str, list[int]]:
    """Prune in place. Returns, per scope, the old index of every layer that is left (position = new index)."""
    kept = {}
    for scope in search.SCOPES["both"]:
        kept[str(scope)] = search.kept(len(speech.layers(scope)), scope, removed)
        layers.prune(speech, scope, kept[str(scope)])
    return kept


STAGE = Stage(
    name="prune",
    directory="40-pruned",
    section=lambda recipe: recipe.prune,
    parents=lambda recipe: [directory_of(teacher_key(recipe)), RANKING],
    run=run,
    uses=("source", "target", "prompt"),
)
