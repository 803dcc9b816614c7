"""Layers by name: how they are written, what a removal leaves, and what is refused."""

from __future__ import annotations

import pytest

from sordino.errors import RecipeError
from sordino.pruning.layer import Layer, check_keep, kept, parse_layer, renumbered


@pytest.mark.parametrize(
    ("text", "layer"),
    [("12", Layer("decoder", 12)), ("decoder.3", Layer("decoder", 3)), ("encoder.0", Layer("encoder", 0))],
)
def test_layers_are_named(text: str, layer: Layer) -> None:
    assert parse_layer(text) == layer
    assert parse_layer(str(layer)) == layer


@pytest.mark.parametrize("text", ["", "-1", "tower.3", "decoder.", "decoder.x", "1.5", "decoder.1.2"])
def test_what_names_no_layer_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="names no layer"):
        parse_layer(text)


def test_kept_layers_are_checked_and_sorted() -> None:
    assert check_keep([3, 0, 2], 4, "decoder") == [0, 2, 3]
    assert check_keep((0,), 1, "encoder") == [0]
    with pytest.raises(RecipeError, match="encoder layers 0 to 3"):
        check_keep([4], 4, "encoder")


def test_what_a_removal_leaves() -> None:
    removed = [Layer("decoder", 3), Layer("encoder", 0), Layer("decoder", 1)]
    assert kept(5, "decoder", removed) == [0, 2, 4]
    assert kept(3, "encoder", removed) == [1, 2]
    assert renumbered(Layer("decoder", 4), removed) == Layer("decoder", 2)
    assert renumbered(Layer("encoder", 2), removed) == Layer("encoder", 1)


def test_a_removal_that_leaves_no_layer_or_names_one_twice_is_refused() -> None:
    for wrong, message in (
        ([Layer("decoder", 0), Layer("decoder", 1)], "no decoder layer would be left"),
        ([Layer("decoder", 0), Layer("decoder", 0)], "named twice"),
        ([Layer("decoder", 2)], "has decoder layers 0 to 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            kept(2, "decoder", wrong)


def test_a_model_without_an_encoder_has_no_encoder_layers_to_keep_or_remove() -> None:
    assert kept(0, "encoder", [Layer("decoder", 1)]) == []
    with pytest.raises(RecipeError, match="this model has no encoder layers"):
        kept(0, "encoder", [Layer("encoder", 0)])
