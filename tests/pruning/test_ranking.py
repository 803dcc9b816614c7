"""The ranking as a value: ranking.json there and back, the layers a recipe takes, and those that would go next."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sordino.errors import ArtifactError, RecipeError
from sordino.pruning.layer import Layer
from sordino.pruning.ranking import Ranking
from sordino.runtime import files

# as the version before wrote it
WRITTEN: dict[str, Any] = {
    "method": "iterative",
    "scope": "both",
    "criterion": "chrf++",
    "search": "exact",
    "order": ["decoder.5", "decoder.2", "decoder.7", "encoder.1", "decoder.3"],
    "removals": [
        {
            "layer": "decoder.5",
            "clips": 3,
            "score": 24.5,
            "interval": [20.25, 28.125],
            "probability": 0.59,
            "runner_up": "encoder.1",
            "runner_up_probability": 0.375,
        },
        {
            "layer": "decoder.2",
            "clips": 3,
            "score": 16.3,
            "interval": [10.0, 20.0],
            "probability": 1.0,
            "runner_up": None,
            "runner_up_probability": 0.0,
        },
    ],
    "layers": {"decoder": 8, "encoder": 4},
}


def test_a_ranking_is_written_as_it_was_read(tmp_path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    files.write_json(before, WRITTEN)
    ranking = Ranking.read(before)
    files.write_json(after, ranking.to_json())
    assert after.read_bytes() == before.read_bytes()
    assert ranking.removals[0].runner_up == Layer("encoder", 1)
    assert ranking.removals[0].interval == (20.25, 28.125)


def test_a_ranking_of_named_layers_has_no_removals() -> None:
    named = {key: WRITTEN[key] for key in ("method", "scope", "order", "layers")}  # the oldest have no more
    ranking = Ranking.from_json(named)
    assert ranking.removals == () and ranking.criterion is None and ranking.search is None
    assert json.loads(json.dumps(ranking.to_json()))["order"] == WRITTEN["order"]


def test_a_recipe_takes_the_first_removals() -> None:
    ranking = Ranking.from_json(WRITTEN)
    assert ranking.removal_order() == list(ranking.order)
    assert ranking.removal_order(2) == [Layer("decoder", 5), Layer("decoder", 2)]
    with pytest.raises(RecipeError, match=r"prune.remove: 6, but the ranking holds 5 removals. Raise rank.remove."):
        ranking.removal_order(6)


@pytest.mark.parametrize(
    ("removed", "indices"),
    [(0, [5, 2, 7]), (1, [2, 6]), (2, [5]), (3, []), (4, [2])],
)
def test_the_next_layers_are_numbered_as_in_the_pruned_model(removed: int, indices: list[int]) -> None:
    """Up to the encoder layer: what comes after it must wait for its turn."""
    following = Ranking.from_json(WRITTEN).next_decoder_layers(removed)
    assert following == [Layer("decoder", index) for index in indices]


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "{}", "{", '{"method": "explicit"}', "[" * 200_000 + "]" * 200_000,
     '{"method": "explicit", "scope": "decoder", "order": ["nowhere.1"], "layers": {}}',
     '{"method": "explicit", "scope": "decoder", "order": 3, "layers": {}}'],
)  # fmt: skip
def test_a_file_that_is_no_ranking(tmp_path, content: str) -> None:
    (tmp_path / "ranking.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"ranking\.json"):
        Ranking.read(tmp_path / "ranking.json")
