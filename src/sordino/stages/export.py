"""export: the deployable forms of the last model of the chain, each in its directory with a byte audit and a card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.config import chain
from sordino.config.run_layout import AUDIT, DATA, EXPORT, RANKING
from sordino.config.schema import ExportSection, Recipe
from sordino.errors import ArtifactError
from sordino.formats.registry import MIXED
from sordino.pipeline import kept_formats
from sordino.pipeline.artifact import Parent
from sordino.pipeline.parents import labels_directory, parents_of
from sordino.pipeline.stage import Grown, Job, Stage
from sordino.runtime import files
from sordino.runtime.progress import note

UNSCORED = "it was written with the model, before it was scored. `sordino card MODEL` prints the whole card."


def run(job: Job, section: ExportSection) -> None:
    from sordino.pipeline import exporting
    from sordino.pipeline.mixed_precision import MixedPrecision, limit_of
    from sordino.publishing import card
    from sordino.vocabulary.tokenizer import without_weights

    key = chain.start_of(job.recipe, chain.EXPORTS.key)
    model = job.model(key)
    job.prompt(without_weights(model.path, model.revision))  # also where every format is there, or its costs are
    settings = STAGE.settings(job.recipe)
    assert settings
    kept = kept_formats.beside(job.recipe, settings, parents_of(STAGE, job.recipe)).kept
    for form in kept:
        if not (job.out / form / AUDIT).is_file():
            kept_formats.take_over(job.layout.root / EXPORT, form, job.out)
    for form in section.formats:
        directory = job.out / form
        if not (directory / AUDIT).is_file():  # which is written last
            shutil.rmtree(directory, ignore_errors=True)
            if key == chain.QAT:
                exporting.copy(Path(model.path), directory)
            elif form == MIXED:
                mixer = MixedPrecision(job, key, section.sensitivity)
                limit = limit_of(job.recipe, section.budget_gb, section.budget_ratio)
                exporting.write_mixed(mixer, limit, directory)
            else:
                exporting.write(job, key, form, directory)
        if not (directory / card.README).is_file():
            describe(job, form, directory)


def describe(job: Job, form: str, directory: Path) -> None:
    """Write an export's model card, which has no scores yet; without a history where earlier stages were removed."""
    from sordino.pipeline import lineage
    from sordino.publishing import card, facts

    made_from = [parent.to_json() for parent in parents_of(STAGE, job.recipe)]
    record = {"stage": STAGE.name, "section": STAGE.settings(job.recipe), "parents": made_from}
    history = None
    try:
        history = lineage.behind(job.layout.root / EXPORT, record)
    except ArtifactError as error:
        note(f"  {form}: its card does not say how it was made: {error.problem}")
    known = facts.read(directory, f"{job.recipe.name}-{form}", facts.HERE, history, UNSCORED)
    files.write_text(directory / card.README, card.render(known))


def parents(recipe: Recipe) -> list[str]:
    """The model; for a budget, the clips that say what matters and the layers that may go too."""
    section = recipe.export
    assert section
    directories = [chain.directory_of(chain.start_of(recipe, chain.EXPORTS.key))]
    if MIXED in section.formats:
        directories += [DATA, *([RANKING] if recipe.rank and section.sensitivity.drop else [])]
    if "w4a16-gptq" in section.formats:
        directories.append(labels_directory(recipe))
    return list(dict.fromkeys(directories))


def grown(recipe: Recipe, settings: Mapping[str, Any], parents: Sequence[Parent]) -> Grown:
    """With the formats that are there and stay, and whether none of them goes."""
    exports = kept_formats.beside(recipe, settings, parents)
    return exports.settings, exports.parents, exports.all_stay


STAGE = Stage(
    name="export",
    directory=EXPORT,
    section=lambda recipe: recipe.export,
    parents=parents,
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention", "encode_batch"),
    grown=grown,
)
