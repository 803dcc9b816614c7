"""The block of layers that changes the least: against the stock model's hidden states, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sordino.errors import RecipeError
from sordino.models.speech import SpeechModel, pad_left
from sordino.pruning import block, search
from sordino.pruning.layer import Layer
from tests import tiny
from tests.pruning.test_plain import slow
from tests.pruning.test_scoring import task

MEMORY = 2**22


@pytest.mark.parametrize("way", ["fast", "slow"])
@pytest.mark.parametrize("remove", [1, 2])
def test_distances_are_those_of_the_stock_models_states(
    pico: Callable[[str], SpeechModel], remove: int, way: str
) -> None:
    speech = tiny.fresh(pico("qwen2_audio"))
    encoded = task(speech).encoded
    pool = search.candidates(speech, "decoder", 0, 1)  # what leaves the last layer is normed in the stock model's list
    found = block.distances(speech if way == "fast" else slow(speech), encoded, pool, remove, MEMORY)
    assert [*found] == list(range(tiny.DECODER_LAYERS - remove))
    expected = dict.fromkeys(found, 0.0)
    for clip in encoded:
        ids, mask = pad_left([clip.ids], speech.pad_id(), speech.device)
        with torch.no_grad():
            given = speech.inputs(ids, mask, speech.project([clip.states]))
            states = speech.part("decoder")(**given, use_cache=False, output_hidden_states=True).hidden_states
        for first in expected:
            one, other = (states[at][0, -1].double() for at in (first, first + remove))
            cosine = float(one @ other / one.norm() / other.norm())
            expected[first] += math.acos(max(-1.0, min(1.0, cosine))) / math.pi / len(encoded)
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(found.values())) == len(found)


def test_the_closest_block_goes_from_front_to_back_and_the_first_of_equals() -> None:
    assert block.closest({1: 0.3, 2: 0.1, 3: 0.1}, 2) == [Layer("decoder", 2), Layer("decoder", 3)]


def test_a_block_is_of_candidates_alone(pico: Callable[[str], SpeechModel]) -> None:
    speech = tiny.fresh(pico("qwen2_audio"))
    encoded = task(speech).encoded
    apart = [Layer("decoder", 0), Layer("decoder", 2), Layer("decoder", 3)]
    assert [*block.distances(speech, encoded, apart, 2, MEMORY)] == [2]
    with pytest.raises(RecipeError, match="no 3 neighbours are all candidates"):
        block.distances(speech, encoded, apart, 3, MEMORY)
