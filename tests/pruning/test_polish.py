"""Swaps after the greedy search: they help, end, are the same every time, and resume."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from sordino.pruning import polish, search
from sordino.pruning.layer import Layer
from sordino.pruning.ranking import Ranking
from sordino.pruning.search import Trial
from tests.pruning.test_search import CLIPS, FakeJudge, pool

SIZE, REMOVE = 10, 3  # of the pool; here greedy is not the best that swaps can reach


def polished(
    judge: FakeJudge, known: Sequence[Trial] = (), trials: list[Trial] | None = None
) -> tuple[list[search.Removal], list[search.Removal], list[polish.Swap]]:
    removals = search.search(pool(SIZE), REMOVE, judge, [], lambda _: None)
    record = [] if trials is None else trials
    return removals, *polish.polished(pool(SIZE), removals, judge, record.append, known=known)


def layers(removals: Sequence[search.Removal]) -> list[Layer]:
    return [removal.layer for removal in removals]


class Trap(FakeJudge):
    """The layer that is missed least alone is in no good set: greedy takes it, and would have to give it back."""

    def __init__(self, higher_is_better: bool = True) -> None:
        super().__init__(higher_is_better)
        values = {frozenset(s): 10.0 * len(s) for n in range(4) for s in itertools.combinations(range(SIZE), n)}
        values[frozenset([0])] = 5.0  # the least loss of a single removal
        values |= {s: 30.0 for s in values if len(s) == 3}
        values |= {s: 14.0 for s in values if len(s) == 2 and 0 in s}
        values |= {s: 25.0 for s in values if len(s) == 3 and 0 in s}
        values[frozenset([0, 2, 4])] = 20.0
        values[frozenset([2, 4, 5])] = 12.0
        self.losses = values

    def values(self, gone: Sequence[Layer], clips: int) -> NDArray[np.float64]:
        loss = self.losses[frozenset(layer.index for layer in gone)]
        return np.full(clips, -loss if self.higher_is_better else loss)

    def screen(self, removed: Sequence[Layer], candidates: Sequence[Layer], clips: int) -> list[float]:
        sign = -1 if self.higher_is_better else 1
        return [sign * self.score([*removed, layer], clips) for layer in candidates]


class WellScreened(FakeJudge):
    def screen(self, removed: Sequence[Layer], candidates: Sequence[Layer], clips: int) -> list[float]:
        return super().screen(removed, candidates, CLIPS)


@pytest.mark.parametrize("higher", [True, False])
def test_a_swap_leads_out_of_the_greedy_trap(higher: bool) -> None:
    judge = Trap(higher)
    before, after, swaps = polished(judge)
    assert Layer("decoder", 0) in layers(before)
    assert sorted(layer.index for layer in layers(after)) == [2, 4, 5]
    assert [str(swap.restored) for swap in swaps][-1] == "decoder.0"
    assert all(abs(swap.score) < abs(swap.before) and swap.probability == 1.0 for swap in swaps)
    assert after[-1].trial.score == swaps[-1].score == (-12.0 if higher else 12.0)


def test_no_swap_is_left_that_would_help() -> None:
    """Screened by the score itself, so that what a pass confirms is the best there is."""
    judge = WellScreened()
    before, after, swaps = polished(judge)
    score = judge.score(layers(after))
    assert swaps
    assert score > judge.score(layers(before))
    for restored, other in itertools.product(layers(after), pool(SIZE)):
        if other not in layers(after):
            swapped = [layer for layer in layers(after) if layer != restored] + [other]
            assert judge.score(swapped) <= score


def test_the_order_of_what_goes_is_greedy_among_it() -> None:
    judge = FakeJudge()
    _, after, _ = polished(judge)
    gone: list[Layer] = []
    for removal in after:
        left = [layer for layer in sorted(layers(after)) if layer not in gone]
        scores = [judge.score([*gone, layer]) for layer in left]
        assert removal.layer == left[scores.index(max(scores))]
        assert removal.trial.score == max(scores)
        gone.append(removal.layer)


def test_where_nothing_helps_the_removals_stay_as_they_are() -> None:
    judge = FakeJudge(levels=1)  # every score is 0
    before, after, swaps = polished(judge)
    assert (after, swaps) == (before, [])


def test_a_polish_resumes_after_any_trial_and_a_search_never_takes_its_trials() -> None:
    trials: list[Trial] = []
    whole = polished(FakeJudge(), trials=trials)
    assert len({(frozenset([*(t.without or ()), t.layer])) for t in trials}) == len(trials)
    stored = [json.loads(json.dumps(t.to_json())) for t in trials]
    assert [Trial.from_json(row) for row in stored] == trials
    for done in range(0, len(trials) + 1, 3):
        judge, again = FakeJudge(), list[Trial]()
        known = [Trial.from_json(row) for row in stored[:done]]
        assert polished(judge, known, again) == whole
        assert again == trials
        searched = 1 + sum(SIZE - i for i in range(REMOVE))
        assert len(judge.asked) == searched + len(trials) - done
    judge = FakeJudge()
    search.search(pool(SIZE), 6, judge, [], lambda _: None, known=trials)
    assert len(judge.asked) == 1 + sum(SIZE - i for i in range(6))


def test_only_layers_that_may_go_together_are_swapped() -> None:
    judge = Trap()
    removals = search.search(pool(SIZE), REMOVE, judge, [], lambda _: None)
    forbidden = {Layer("decoder", 2), Layer("decoder", 4)}
    after, _ = polish.polished(
        pool(SIZE), removals, judge, lambda _: None, lambda removed: not forbidden <= set(removed)
    )
    assert not forbidden <= set(layers(after))


def test_at_most_so_many_swaps_of_a_pass_are_scored_on_all_clips() -> None:
    judge = FakeJudge()
    _, _, swaps = polished(judge)
    searched = 1 + sum(SIZE - i for i in range(REMOVE))
    ordered = sum(range(1, REMOVE + 1))
    assert len(judge.asked) <= searched + 1 + polish.CONFIRMED * (len(swaps) + 1) + ordered
    assert {clips for _, _, clips in judge.asked} == {CLIPS}


def test_the_order_before_swaps_is_kept_in_the_file() -> None:
    order = tuple(pool(2))
    ranking = Ranking(
        "iterative", "decoder", "chrf", "exact", order, (), {"decoder": 7}, (order[1], Layer("decoder", 5))
    )
    assert Ranking.from_json(json.loads(json.dumps(ranking.to_json()))) == ranking
    plain = Ranking("iterative", "decoder", "chrf", "exact", order, (), {"decoder": 7})
    assert "searched" not in plain.to_json()
