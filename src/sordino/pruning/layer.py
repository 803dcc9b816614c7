"""Layers by name: "decoder.12" is the layer with index 12 of the unpruned model's decoder. No torch.

`plan` and the ranking's file name layers without loading a model; the surgery itself is in layers.py.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.errors import RecipeError

if TYPE_CHECKING:
    from sordino.models.family import Family, Scope

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


def stacks_of(family: Family, scope: str) -> list[Scope]:
    """The layer lists that a scope means. Raises RecipeError for the encoder of a model that has none."""
    lacking = [each for each in SCOPES[scope] if each not in family.stacks]
    if lacking:
        raise RecipeError(
            f"rank.scope: a {family.model_type} model has no {lacking[0]} layers.", "Use rank.scope: decoder."
        )
    for each in SCOPES[scope]:
        if family.stacks[each].whole:
            raise RecipeError(
                f"rank.scope: no {each} layer can be removed from a {family.model_type} model: "
                f"{family.stacks[each].whole}.",
                "Leave rank: and prune: out.",
            )
    return list(SCOPES[scope])


def check_removable(family: Family, scope: Scope, config: Any, total: int, keep: Sequence[int]) -> None:
    """Raise RecipeError where layers go that the family cannot do without. config: the stack's sub-config."""
    whole = family.stacks[scope].whole
    if whole and len(keep) < total:
        raise RecipeError(f"no {scope} layer can be removed from a {family.model_type} model: {whole}.")
    protected = sorted(set(range(total)) - {*family.stacks[scope].removable(config, total), *keep})
    if protected:
        raise RecipeError(
            f"{scope} layer {protected[0]} cannot be removed from a {family.model_type} model.",
            "Leave it out of the layers to remove.",
        )
    problem = family.stacks[scope].fits(config, keep)
    if problem:
        raise RecipeError(
            f"these {scope} layers cannot be removed from a {family.model_type} model: {problem}.",
            "Name others, or leave the list whole.",
        )


def refuse_removals(
    family: Family, config: Mapping[str, Any], counts: Mapping[str, int], removed: Sequence[Layer]
) -> None:
    """Raise RecipeError for layers that a model does not have or cannot do without.

    config: config.json; counts: layers by scope.
    """
    for scope in SCOPES["both"]:
        total = counts.get(scope, 0)
        staying = kept(total, scope, removed)
        if scope in family.stacks and any(layer.scope == scope for layer in removed):
            path = filter(None, family.stacks[scope].config.split("."))
            part = functools.reduce(lambda at, key: at[key], path, family.core(config))
            check_removable(family, scope, types.SimpleNamespace(**part), total, staying)
