"""The search for layers that can go: exact against brute force, ties, resuming, and what may be asked for."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sordino.errors import RecipeError
from sordino.models import registry
from sordino.models.speech import SpeechModel
from sordino.pruning import search
from sordino.pruning.layer import Layer
from sordino.pruning.search import Trial
from tests.tiny import fresh

CLIPS = 8


class FakeJudge:
    """Scores that depend on the set of removed layers in no simple way, so that greedy and one-shot orders differ."""

    clips = CLIPS

    def __init__(self, higher_is_better: bool = True, levels: int = 10_000) -> None:
        self.higher_is_better, self.levels = higher_is_better, levels
        self.asked: list[tuple[int, Layer | None, int]] = []
        self.screened: list[int] = []

    def values(self, gone: Sequence[Layer], clips: int) -> NDArray[np.float64]:
        name = " ".join(sorted(map(str, gone)))
        digests = (hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(clips))
        return np.array([int.from_bytes(d[:4], "big") % self.levels for d in digests], dtype=np.float64)

    def score(self, gone: Sequence[Layer], clips: int = CLIPS) -> float:
        return float(self.values(gone, clips).mean())

    def trials(
        self, number: int, removed: Sequence[Layer], candidates: Sequence[Layer | None], clips: int
    ) -> Iterator[Trial]:
        for layer in candidates:
            self.asked.append((number, layer, clips))
            gone = [*removed, layer] if layer else list(removed)
            values = self.values(gone, clips)
            yield Trial(number, layer, float(values.mean()), clips, values=tuple(values))

    def screen(self, removed: Sequence[Layer], candidates: Sequence[Layer], clips: int) -> list[float]:
        self.screened.append(len(removed))
        return [-self.score([*removed, layer], clips) for layer in candidates]

    def resampled(self, trial: Trial) -> NDArray[np.float64]:
        assert trial.values
        picks = np.random.default_rng(0).integers(0, trial.clips, (200, trial.clips))
        means: NDArray[np.float64] = np.array(trial.values)[picks].mean(1)
        return means


def pool(decoder: int = 6, encoder: int = 0) -> list[Layer]:
    return [Layer("decoder", i) for i in range(decoder)] + [Layer("encoder", i) for i in range(encoder)]


def brute_force(judge: FakeJudge, layers: Sequence[Layer], remove: int) -> list[Layer]:
    order: list[Layer] = []
    for _ in range(remove):
        left = [layer for layer in layers if layer not in order]
        scores = [judge.score([*order, layer]) for layer in left]
        order.append(left[scores.index(max(scores) if judge.higher_is_better else min(scores))])
    return order


def test_what_a_search_of_another_length_has_tried_is_recorded_and_not_run_again() -> None:
    for racing in (False, True):
        runs: dict[int, list[Trial]] = {}
        for remove in (2, 3, 4):
            runs[remove] = []
            search.search(pool(9), remove, FakeJudge(), [], runs[remove].append, racing)
        for before, now in ((2, 4), (4, 2), (3, 3), (4, 3)):
            judge, recorded = FakeJudge(), list[Trial]()
            search.search(pool(9), now, judge, [], recorded.append, racing, known=runs[before])
            assert recorded == runs[now]
            asked = {number for number, _, _ in judge.asked}
            assert asked <= ({*range(before + 1, now + 1)} or {now} if racing else {*range(before + 1, now + 1)})


def order_of(judge: FakeJudge, layers: Sequence[Layer], remove: int, **options: Any) -> list[Layer]:
    found = search.search(layers, remove, judge, options.pop("known", []), lambda _: None, **options)
    return [removal.layer for removal in found]


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(("decoder", "encoder", "remove"), [(6, 0, 3), (5, 4, 4), (4, 0, 4), (1, 0, 1)])
def test_the_search_is_greedy_and_exact(higher: bool, decoder: int, encoder: int, remove: int) -> None:
    judge = FakeJudge(higher)
    layers = pool(decoder, encoder)
    assert order_of(judge, layers, remove) == brute_force(judge, layers, remove)
    assert len(judge.asked) == 1 + sum(len(layers) - i for i in range(remove))
    assert len(set(judge.asked)) == len(judge.asked)
    assert judge.asked[0] == (0, None, CLIPS)


def test_greedy_is_not_one_shot() -> None:
    """Otherwise the test above could not tell a search that never looks again."""
    judge = FakeJudge()
    alone = sorted(pool(), key=lambda layer: -judge.score([layer]))
    assert order_of(judge, pool(), 4) != alone[:4]


@pytest.mark.parametrize("higher", [True, False])
def test_ties_go_to_the_lower_index(higher: bool) -> None:
    judge = FakeJudge(higher, levels=1)  # every score is 0
    assert order_of(judge, pool(4, 2), 6) == pool(4, 2)


def test_a_search_resumes_after_any_trial() -> None:
    judge = FakeJudge()
    trials: list[Trial] = []
    whole = search.search(pool(), 3, judge, [], trials.append)
    stored = [json.loads(json.dumps(t.to_json())) for t in trials]
    for done in range(len(trials) + 1):
        again, new = FakeJudge(), []
        known = [Trial.from_json(row) for row in stored[:done]]
        assert search.search(pool(), 3, again, known, new.append) == whole
        assert known + new == trials
        assert len(again.asked) == len(trials) - done


def test_a_removal_says_how_sure_it_is() -> None:
    judge = FakeJudge()
    for removal in search.search(pool(), 3, judge, [], lambda _: None):
        assert 0 <= removal.runner_up_probability <= 1
        assert 0 <= removal.probability <= 1
        assert removal.runner_up != removal.layer
    lone = search.search(pool(1), 1, judge, [], lambda _: None)[0]
    assert (lone.probability, lone.runner_up) == (1.0, None)


def test_racing_scores_the_last_winner_on_all_clips_and_resumes() -> None:
    judge = FakeJudge()
    trials: list[Trial] = []
    whole = search.search(pool(12), 6, judge, [], trials.append, racing=True)
    assert judge.screened == [0, 4]  # layers that were out: in the first round, and in the fifth
    assert sum(t.clips for t in trials) < CLIPS * (1 + 12 + 11)
    for number, removal in enumerate(whole, 1):
        met = [t for t in trials if t.round == number and t.clips == CLIPS // 2]
        assert len(met) == 2 and max(met, key=lambda t: t.score).layer == removal.layer
        assert removal.runner_up in [t.layer for t in met if t.layer != removal.layer]
        on_all = [t for t in trials if t.round == number and t.clips == CLIPS]
        assert removal.trial == (on_all[0] if number == 6 else max(met, key=lambda t: t.score))
        assert [t.layer for t in on_all] == ([removal.layer] if number == 6 else [])
    for done in range(0, len(trials), 3):
        assert search.search(pool(12), 6, FakeJudge(), trials[:done], lambda _: None, racing=True) == whole


@pytest.mark.parametrize(
    ("field", "clips", "expected"),
    [
        (4, 100, [(4, 25), (2, 50)]),  # decided: one is left
        (3, 100, [(3, 25), (2, 50)]),
        (10, 100, [(10, 25), (5, 50), (3, 100)]),  # more of them meet on all clips
        (1, 100, [(1, 100)]),
        (4, 1, [(4, 1)]),
        (4, 2, [(4, 1), (2, 2)]),
    ],
)
def test_the_stages_of_a_race(field: int, clips: int, expected: list[tuple[int, int]]) -> None:
    assert list(search.schedule(field, clips)) == expected


def test_more_removals_than_candidates_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"rank\.remove: 5 layers, but only 4 are candidates"):
        order_of(FakeJudge(), pool(4), 5)


@pytest.fixture(scope="module")
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    """4 decoder and 3 encoder layers."""
    return pico("qwen2_audio")


def test_protected_layers_are_no_candidates(speech: SpeechModel) -> None:
    def names(scope: str, first: int, last: int) -> list[str]:
        return [str(layer) for layer in search.candidates(speech, scope, first, last)]

    assert names("decoder", 1, 1) == ["decoder.1", "decoder.2"]
    assert names("decoder", 0, 0) == [f"decoder.{i}" for i in range(4)]
    assert names("encoder", 0, 2) == ["encoder.0"]
    assert names("both", 1, 1) == ["decoder.1", "decoder.2", "encoder.1"]
    with pytest.raises(RecipeError, match="every encoder layer is protected"):
        names("encoder", 2, 1)


@pytest.mark.parametrize(("total", "remove", "block"), [(32, 8, range(12, 20)), (5, 2, range(1, 3)), (4, 1, [1])])
def test_the_middle(total: int, remove: int, block: Sequence[int]) -> None:
    """The paper's 12 to 19 of 32 for 8."""

    model: Any = types.SimpleNamespace(family=registry.get("qwen2_audio"), layer_count=lambda _: total)
    assert [layer.index for layer in search.middle(model, "decoder", remove)] == list(block)
    both = search.middle(model, "both", remove)
    assert [layer.index for layer in both] == [*block, *block]
    with pytest.raises(RecipeError, match="would leave none"):
        search.middle(model, "decoder", total)


def test_a_view_without_layers_is_undone(speech: SpeechModel) -> None:
    own = fresh(speech)
    before = [list(own.layers("decoder")), list(own.layers("encoder"))]
    removed = [Layer("decoder", 1), Layer("encoder", 2), Layer("decoder", 3)]
    with pytest.raises(KeyError), search.without(own, removed):
        assert list(own.layers("decoder")) == [before[0][0], before[0][2]]
        assert list(own.layers("encoder")) == before[1][:2]
        raise KeyError
    assert [list(own.layers("decoder")), list(own.layers("encoder"))] == before
    for wrong in ([Layer("decoder", 4)], [Layer("encoder", 0)] * 2, [Layer("encoder", i) for i in range(3)]):
        with pytest.raises(RecipeError), search.without(own, wrong):
            pass
