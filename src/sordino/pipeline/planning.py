"""What a plan says beside its lines: what `run` will refuse or ask, what is not installed, not used, or in the way."""

from __future__ import annotations

from collections.abc import Sequence

from sordino.config.schema import Recipe
from sordino.errors import ArtifactError, RecipeError
from sordino.measure.show import gigabytes
from sordino.pipeline import launching, leftovers, preflight
from sordino.pipeline.runner import Planned


def told_of(recipe: Recipe, lines: Sequence[Planned]) -> dict[str, list[str]]:
    """Lists of messages. refused: `run` will end with these; not_installed: with these, too, as long as the formats are
    asked for; note: what else a reader should know."""
    refused = [str(error) for error in preflight.problems(recipe)]
    try:
        launching.refuse(recipe)
    except RecipeError as error:
        refused.append(str(error))
    for line in lines:
        if line.why is not None:
            try:
                leftovers.refuse_foreign(recipe.directory / line.directory)
            except ArtifactError as error:
                refused.append(str(error))
    kept = {line.stage: line.forecast.cache for line in lines if line.why and line.forecast and line.forecast.cache}
    notes = preflight.notes(recipe) + [
        f"{stage} keeps the teacher's probabilities in the run's cache: ~{gigabytes(size)}, which may be deleted"
        for stage, size in kept.items()
    ]
    notes += [
        f"{leftovers.partial_of(recipe.directory / line.directory)} is unfinished work of other settings, and may go"
        for line in lines
        if line.why is None and leftovers.partial_of(recipe.directory / line.directory).exists()
    ]
    if any(line.replaces for line in lines):
        names = ", ".join(line.stage for line in lines if line.replaces)
        notes.append(f"`run` will replace finished stages, and asks before, or wants --yes: {names}")
    return {
        "refused": refused,
        "not_installed": [f"{name}: {error}" for name, error in preflight.not_installed(recipe).items()],
        "note": notes,
    }
