"""Layers by name: "decoder.12" is the layer with index 12 of the unpruned model's decoder. No torch.

`plan` and the ranking's file name layers without loading a model; the surgery itself is in layers.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sordino.errors import RecipeError

if TYPE_CHECKING:
    from sordino.models.family import Scope

# name of a scope in recipes -> the layer lists it means
SCOPES: dict[str, tuple[Scope, ...]] = {
    "decoder": ("decoder",),
    "encoder": ("encoder",),
    "both": ("decoder", "encoder"),
}


@dataclass(frozen=True, order=True)
class Layer:
    """A layer by its index in the unpruned model."""

    scope: Scope
    index: int

    def __str__(self) -> str:
        return f"{self.scope}.{self.index}"


def parse_layer(text: str) -> Layer:
    """'12' or 'decoder.12' or 'encoder.3'. Raises RecipeError."""
    scope, _, index = text.rpartition(".")
    if scope not in ("", "decoder", "encoder") or not index.isdigit():
        raise RecipeError(f"'{text}' names no layer.", "Write decoder.12, encoder.3, or 12 for a decoder layer.")
    return Layer("encoder" if scope == "encoder" else "decoder", int(index))


def renumbered(layer: Layer, removed: Sequence[Layer]) -> Layer:
    """A layer by its present index, once the layers in `removed` (by their old index) are gone."""
    return Layer(layer.scope, layer.index - sum(r.scope == layer.scope and r.index < layer.index for r in removed))


def kept(total: int, scope: Scope, removed: Sequence[Layer]) -> list[int]:
    """Indices of a scope's `total` layers that stay; none of a model without such layers.

    Raises RecipeError for a layer out of range or twice, and where none would be left.
    """
    gone = [layer.index for layer in removed if layer.scope == scope]
    if not total and not gone:
        return []
    if gone:
        check_keep(gone, total, scope)
    return check_keep([i for i in range(total) if i not in gone], total, scope)


def check_keep(keep: Sequence[int], total: int, scope: Scope) -> list[int]:
    """Sorted copy of the layers to keep. Raises RecipeError for an index out of range, twice, or an empty list."""
    wrong = [i for i in keep if not 0 <= i < total]
    if wrong:
        there = f"{scope} layers 0 to {total - 1}" if total else f"no {scope} layers"
        raise RecipeError(
            f"{scope} layer {wrong[0]} is out of range: this model has {there}.",
            "Name layers by their index in the unpruned model.",
        )
    if len(set(keep)) != len(keep):
        raise RecipeError(f"a {scope} layer is named twice in {list(keep)}.")
    if not keep:
        raise RecipeError(f"no {scope} layer would be left.", "Remove fewer layers.")
    return sorted(keep)
