"""Without a decoder line the same search gives the same trials, slowly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from sordino.models import registry
from sordino.models.speech import SpeechModel
from sordino.pruning import search
from sordino.pruning.engines import open_engine
from sordino.pruning.plain import PlainDecoder
from sordino.pruning.search import Layer, Trial
from sordino.pruning.speculative import SpeculativeDecoder
from tests import tiny
from tests.pruning.test_scoring import judge, task


def slow(speech: SpeechModel) -> SpeechModel:
    """The same model of a family that knows no decoder line."""
    decoder = dataclasses.replace(speech.family.decoder, line=None)
    return dataclasses.replace(speech, family=dataclasses.replace(speech.family, decoder=decoder))


@pytest.mark.parametrize("criterion", ["chrf", "loss", "kl", "influence", "angular"])
@pytest.mark.parametrize("family", [name for name in sorted(registry.FAMILIES) if registry.get(name).decoder.line])
def test_trials_are_those_of_the_fast_way(pico: Callable[[str], SpeechModel], family: str, criterion: str) -> None:
    fast = tiny.fresh(pico(family))
    plain = slow(fast)
    assert isinstance(open_engine(fast, 4, 2**20), SpeculativeDecoder)
    assert isinstance(open_engine(plain, 4, 2**20), PlainDecoder)
    removed = [Layer("decoder", 1)]
    pool = [layer for scope in fast.family.scopes for layer in search.candidates(fast, scope, 0, 0)]
    candidates = [None, *(layer for layer in pool if layer not in removed and search.allows(fast, [*removed, layer]))]
    clips = 5
    expected, trials = (
        list(judge(model, criterion, [task(model)]).trials(2, removed, candidates, clips)) for model in (fast, plain)
    )
    for one, other in zip(expected, trials, strict=True):
        assert (one.layer, one.hypotheses) == (other.layer, other.hypotheses)
        assert one.values == (other.values and pytest.approx(other.values, abs=1e-3))
        assert one.score == pytest.approx(other.score, abs=1e-3)


def test_a_whole_search(pico: Callable[[str], SpeechModel]) -> None:
    speech = slow(tiny.fresh(pico("qwen2_audio")))
    trials: list[Trial] = []
    pool = search.candidates(speech, "decoder", 1, 1)
    removals = search.search(pool, 2, judge(speech, "chrf"), [], trials.append)
    assert len(trials) == 1 + len(pool) + len(pool) - 1
    assert len({removal.layer for removal in removals}) == 2
    assert speech.layer_count("decoder") == tiny.DECODER_LAYERS, "views leave the model as it was"
