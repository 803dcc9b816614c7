"""Swaps after a greedy search, which never takes a removal back: one removed layer for one kept, while that helps.

A pass screens every swap by its divergence from the unpruned model, teacher-forced, on a twelfth of the clips, as a
race does. Of those that diverge less than the layers at hand, the best few are scored by the criterion on all clips;
the best of them is made if it scores better than the present layers, and the next pass begins. Every swap improves the
score, so that it ends. In the end a greedy search among the layers that go puts them into an order.

The idea is EvoPress's mutation by level switches (Sieberling et al. 2025, arxiv.org/abs/2410.14649), without chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sordino.pruning.layer import Layer
from sordino.pruning.search import CandidateScorer, Removal, Trial, decide, screening_clips

CONFIRMED = 5  # swaps of a pass that are scored on all clips, at most


@dataclass(frozen=True)
class Swap:
    """A swap that was made. restored: goes back; removed: goes instead; score: with it; before: without.

    probability: share of bootstrap resamples of the clips in which it scores better.
    """

    restored: Layer
    removed: Layer
    score: float
    before: float
    probability: float


def polished(
    pool: Sequence[Layer],
    removals: Sequence[Removal],
    scorer: CandidateScorer,
    record: Callable[[Trial], None],
    allowed: Callable[[Sequence[Layer]], bool] = lambda removed: True,
    known: Sequence[Trial] = (),
) -> tuple[list[Removal], list[Swap]]:
    """The removals after all swaps that help, in order, and these swaps; the same removals where there are none.

    pool, record, allowed: as of the search; known: trials of an interrupted polish among others, which are not run
    again.
    """
    trials = _Trials(scorer, record, {_key(t.without, t): t for t in known if t.without is not None}, len(removals) + 1)
    current, swaps = [removal.layer for removal in removals], list[Swap]()
    present = trials.score(current[:-1], current[-1:])[0]
    while best := _best_swap(pool, current, present, scorer, trials, allowed):
        restored, trial = best
        assert trial.layer is not None
        swaps.append(Swap(restored, trial.layer, trial.score, present.score, _probability(scorer, trial, present)))
        current = [*(layer for layer in current if layer != restored), trial.layer]
        present = trial
    return (_ordered(current, scorer, trials, allowed) if swaps else list(removals)), swaps


def _best_swap(
    pool: Sequence[Layer],
    current: Sequence[Layer],
    present: Trial,
    scorer: CandidateScorer,
    trials: _Trials,
    allowed: Callable[[Sequence[Layer]], bool],
) -> tuple[Layer, Trial] | None:
    """The layer that goes back and the trial of the one that goes instead; None where no confirmed swap helps."""
    sign = 1 if scorer.higher_is_better else -1
    screened: list[tuple[float, Layer, Layer]] = []
    for restored in current:
        rest = [layer for layer in current if layer != restored]
        others = [layer for layer in pool if layer not in current and allowed([*rest, layer])]
        costs = scorer.screen(rest, [restored, *others], screening_clips(scorer.clips))
        screened += [(cost, restored, layer) for cost, layer in zip(costs[1:], others, strict=True) if cost < costs[0]]
    best: tuple[Layer, Trial] | None = None
    for _, restored, layer in sorted(screened)[:CONFIRMED]:
        trial = trials.score([other for other in current if other != restored], [layer])[0]
        if sign * trial.score > sign * (best[1] if best else present).score:
            best = restored, trial
    return best


def _probability(scorer: CandidateScorer, trial: Trial, present: Trial) -> float:
    sign = 1 if scorer.higher_is_better else -1
    return float(np.mean(sign * scorer.resampled(trial) > sign * scorer.resampled(present)))


def _ordered(
    layers: Sequence[Layer],
    scorer: CandidateScorer,
    trials: _Trials,
    allowed: Callable[[Sequence[Layer]], bool],
) -> list[Removal]:
    """A greedy search that ends with exactly these layers."""
    removals: list[Removal] = []
    for _ in layers:
        gone = [removal.layer for removal in removals]
        remaining = sorted(layer for layer in layers if layer not in gone)
        # some families remove layers in certain groups alone: where none may go next, any order will do
        remaining = [layer for layer in remaining if allowed([*gone, layer])] or remaining[:1]
        removals.append(decide(trials.score(gone, remaining), scorer))
    return removals


def swap_work(pool: int, remove: int, clips: int) -> int:
    """Translations and forced passes that one pass of swaps comes to, for a progress bar; there may be more passes."""
    return clips * (1 + CONFIRMED) + remove * (pool - remove + 1) * screening_clips(clips)


def _key(without: Sequence[Layer] | None, trial: Trial) -> tuple[frozenset[Layer | None], int]:
    return frozenset([*(without or ()), trial.layer]), trial.clips


@dataclass
class _Trials:
    """Trials by the layers that are out, on all clips. number: of the last group of trials, behind the search's."""

    scorer: CandidateScorer
    record: Callable[[Trial], None]
    known: dict[tuple[frozenset[Layer | None], int], Trial]
    number: int
    recorded: set[tuple[frozenset[Layer | None], int]] = field(default_factory=set)

    def score(self, gone: Sequence[Layer], layers: Sequence[Layer]) -> list[Trial]:
        """The model without `gone` and each of `layers`."""
        self.number += 1
        without, clips = tuple(gone), self.scorer.clips
        keys = {layer: (frozenset([*gone, layer]), clips) for layer in layers}
        new = [layer for layer in layers if keys[layer] not in self.known]
        for trial in self.scorer.trials(self.number, gone, new, clips) if new else ():
            self.known[_key(without, trial)] = dataclasses.replace(trial, without=without)
        trials = []
        for layer in layers:
            trial = dataclasses.replace(self.known[keys[layer]], round=self.number, without=without, layer=layer)
            if keys[layer] not in self.recorded:
                self.record(trial)
                self.recorded.add(keys[layer])
            trials.append(trial)
        return trials
