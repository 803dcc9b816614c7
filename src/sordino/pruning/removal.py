"""Layers out of a model, in both scopes: in place, or into a copy on disk without loading any weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sordino.models import stored
from sordino.models.speech import SpeechModel
from sordino.pruning import layers
from sordino.pruning.layer import SCOPES, Layer, kept


def remove(speech: SpeechModel, removed: Sequence[Layer]) -> dict[str, list[int]]:
    """Prune in place. Returns, per scope, the old index of every layer that stays (position = new index)."""
    staying: dict[str, list[int]] = {str(scope): [] for scope in SCOPES["both"]}
    for scope in speech.family.scopes:
        staying[scope] = kept(speech.layer_count(scope), scope, removed)
        layers.prune(speech, scope, staying[scope])
    return staying


def write_without(source: str, revision: str | None, removed: Sequence[Layer], directory: Path) -> dict[str, list[int]]:
    """Copy a model, in 16 bits, to an existing directory without some layers: weights go from file to file.

    Returns as `remove`. Raises ArtifactError, FamilyError for a model that cannot be used, RecipeError for layers that
    it does not have.
    """
    model = stored.open_model(source, revision)
    staying = remove(model.speech, removed)
    model.write_16bit(directory, "copying the kept layers")
    return staying
