"""Greedy iterative layer importance: which layers translation can spare.

In every round each remaining candidate layer is taken out in turn (a view, no copy), the select clips are scored, and
the layer whose removal hurts least goes for good (Moslem 2025, aclanthology.org/2025.iwslt-1.40). Ties go to the layer
with the lower index, so that a search gives the same order every time.

`exact` scores every candidate on every clip. `racing` drops candidates on the way: a cheap screening by the divergence
from the unpruned model, teacher-forced, then successive halving (Jamieson & Talwalkar 2016) by the criterion on a
quarter, half and all of the clips, until one is left; the last of the winners is scored on all clips in any case. What
screening found holds for a few rounds. `middle` is the ablation that takes a block without looking; block.py and
polish.py hold another baseline and what can be done after a search.

Layers are named by their index in the unpruned model: "decoder.12", "encoder.3".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sordino.errors import RecipeError
from sordino.models.registry import sub_config
from sordino.models.speech import SpeechModel
from sordino.pruning.layer import SCOPES, Layer, kept, parse_layer, stacks_of
from sordino.pruning.layers import only

SCREEN_SHARE = 12  # racing screens on a twelfth of the clips
SCREENED_FOR = 4  # rounds, then anew
SCREENED = 3  # and lets a third of the candidates through, but no fewer than these


@dataclass(frozen=True)
class Trial:
    """One scored candidate. round 0 with no layer is the unpruned model.

    clips: number of select clips it was scored on; hypotheses: its translations of them, in the order of the split,
    where the criterion translates; values: else the criterion's value of each clip. without: of a polish (polish.py),
    the other layers that were out; in the search those are the removals of the rounds before.
    """

    round: int
    layer: Layer | None
    score: float
    clips: int
    interval: tuple[float, float] | None = None
    hypotheses: tuple[str, ...] | None = None
    values: tuple[float, ...] | None = None
    without: tuple[Layer, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        scope, index = (self.layer.scope, self.layer.index) if self.layer else (None, None)
        without = {} if self.without is None else {"without": [str(layer) for layer in self.without]}
        return {
            "round": self.round,
            "scope": scope,
            "layer": index,
            "score": self.score,
            "interval": self.interval,
            "clips": self.clips,
            "hypotheses": self.hypotheses,
            "values": self.values,
        } | without

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Trial:
        layer = None if row["layer"] is None else Layer(row["scope"], row["layer"])
        interval, hypotheses, values = (
            tuple(row[name]) if row[name] is not None else None for name in ("interval", "hypotheses", "values")
        )
        without = tuple(map(parse_layer, row["without"])) if "without" in row else None
        return cls(row["round"], layer, row["score"], row["clips"], interval, hypotheses, values, without)


TrialKey = tuple[int, Layer | None, int]  # round, layer, clips


class CandidateScorer(Protocol):
    """Scores candidates; knows the model, the clips and the criterion."""

    higher_is_better: bool
    clips: int

    def trials(
        self, number: int, removed: Sequence[Layer], candidates: Sequence[Layer | None], clips: int
    ) -> Iterator[Trial]:
        """Score candidates on the first `clips` clips, with `removed` out of the model already."""
        ...

    def screen(self, removed: Sequence[Layer], candidates: Sequence[Layer], clips: int) -> list[float]:
        """Divergence of each candidate from the unpruned model on the first `clips` clips, teacher-forced, in nats."""
        ...

    def resampled(self, trial: Trial) -> NDArray[np.float64]:
        """The trial's score on bootstrap resamples of its clips; the same resamples for every trial."""
        ...


@dataclass(frozen=True)
class Removal:
    """A layer that went, and how sure that was.

    probability: share of bootstrap resamples of the clips in which this removal scores best of its round (in a race: of
    the last two or more that met); runner_up: the layer that wins most of the others, with its own share.
    """

    layer: Layer
    trial: Trial
    probability: float
    runner_up: Layer | None
    runner_up_probability: float


def candidates(speech: SpeechModel, scope: str, protect_first: int, protect_last: int) -> list[Layer]:
    """The layers of a scope that may be removed. Raises RecipeError where the protection leaves none."""
    layers: list[Layer] = []
    for each in stacks_of(speech.family, scope):
        stack, total = speech.family.stacks[each], speech.layer_count(each)
        removable = stack.removable(sub_config(speech.model.config, stack.config), total)
        layers += [Layer(each, i) for i in range(protect_first, total - protect_last) if i in removable]
    if not layers:
        raise RecipeError(f"rank: every {scope} layer is protected.", "Lower protect_first or protect_last.")
    return layers


def middle(speech: SpeechModel, scope: str, remove: int) -> list[Layer]:
    """A block of `remove` layers around the middle of each list of the scope (the paper's 12-19 of 32 for 8)."""
    block: list[Layer] = []
    for each in stacks_of(speech.family, scope):
        total = speech.layer_count(each)
        if remove >= total:
            raise RecipeError(f"rank.remove: {remove} of {total} {each} layers would leave none.", "Remove fewer.")
        first = (total - remove) // 2
        block += [Layer(each, i) for i in range(first, first + remove)]
    return block


def allows(speech: SpeechModel, removed: Sequence[Layer]) -> bool:
    """Whether the family's layers fit together once these are out."""
    for scope, stack in speech.family.stacks.items():
        config = sub_config(speech.model.config, stack.config)
        if stack.fits(config, kept(speech.layer_count(scope), scope, removed)):
            return False
    return True


@contextmanager
def without(speech: SpeechModel, removed: Sequence[Layer]) -> Iterator[SpeechModel]:
    """The model without some layers, in both scopes, inside the block."""
    with ExitStack() as stack:
        for scope in SCOPES["both"]:
            if any(layer.scope == scope for layer in removed):
                stack.enter_context(only(speech, scope, kept(len(speech.layers(scope)), scope, removed)))
        yield speech


def search(
    pool: Sequence[Layer],
    remove: int,
    scorer: CandidateScorer,
    earlier: Sequence[Trial],
    record: Callable[[Trial], None],
    racing: bool = False,
    allowed: Callable[[Sequence[Layer]], bool] = lambda removed: True,
    known: Sequence[Trial] = (),
) -> list[Removal]:
    """The removals, in order.

    earlier: trials of an earlier, interrupted search, which are not run again; record: called with every new trial.
    known: trials of a search of another length, whose rounds are the same as far as both go: they are recorded where
    this one comes to them, instead of being run. allowed: whether layers may be out together. Raises RecipeError where
    more layers are to go than there are candidates, and for a race where some may not go alone: its screening takes
    them all.
    """
    if remove > len(pool):
        raise RecipeError(f"rank.remove: {remove} layers, but only {len(pool)} are candidates.", "Remove fewer.")
    if racing and not all(allowed([layer]) for layer in pool):
        raise RecipeError("rank.search: not all of these layers may go alone, which a race needs.", "Use exact.")
    runner = Runner(scorer, pool, _by_key(earlier), record, _by_key(known))
    runner.score(0, [], [None], scorer.clips)
    removals: list[Removal] = []
    for number in range(1, remove + 1):
        gone = [r.layer for r in removals]
        remaining = [layer for layer in pool if layer not in gone and allowed([*gone, layer])]
        if not remaining:
            raise RecipeError(f"rank.remove: after {len(gone)} layers no other may go.", "Remove fewer.")
        if racing:
            removals.append(runner.race(number, gone, remaining))
        else:
            removals.append(decide(runner.score(number, gone, remaining, scorer.clips), scorer))
    if racing and removals:
        last = removals[-1]
        whole = runner.score(remove, [r.layer for r in removals[:-1]], [last.layer], scorer.clips)
        removals[-1] = dataclasses.replace(last, trial=whole[0])
    return removals


def _by_key(trials: Sequence[Trial]) -> dict[TrialKey, Trial]:
    return {(trial.round, trial.layer, trial.clips): trial for trial in trials if trial.without is None}


def decide(results: Sequence[Trial], scorer: CandidateScorer) -> Removal:
    """The best of a round's trials on the same clips, and how often it stays the best when clips are resampled."""
    sign = 1 if scorer.higher_is_better else -1
    best = max(range(len(results)), key=lambda i: (sign * results[i].score, -i))  # the first of equals
    scores = np.stack([sign * scorer.resampled(trial) for trial in results])  # (candidates, resamples)
    wins = np.bincount(scores.argmax(0), minlength=len(results)) / scores.shape[1]
    others = [i for i in range(len(results)) if i != best]
    second = max(others, key=lambda i: (wins[i], sign * results[i].score, -i)) if others else None
    layer = results[best].layer
    assert layer is not None
    return Removal(
        layer,
        results[best],
        float(wins[best]),
        results[second].layer if second is not None else None,
        float(wins[second]) if second is not None else 0.0,
    )


@dataclass
class Runner:
    """Runs the trials that have not been run yet."""

    scorer: CandidateScorer
    pool: Sequence[Layer]
    trials: dict[TrialKey, Trial]
    record: Callable[[Trial], None]
    known: dict[TrialKey, Trial] = field(default_factory=dict)
    screened: dict[int, dict[Layer, float]] = field(
        default_factory=dict
    )  # divergences, by the round they were found in

    def score(self, number: int, removed: Sequence[Layer], layers: Sequence[Layer | None], clips: int) -> list[Trial]:
        """Trials of all `layers` on so many clips, run now or earlier."""
        lacking = {(number, layer, clips) for layer in layers} - self.trials.keys()
        for key in [key for key in self.known if key in lacking]:
            self.trials[key] = self.known[key]
            self.record(self.known[key])
        new = [layer for layer in layers if (number, layer, clips) not in self.trials]
        if new:
            for trial in self.scorer.trials(number, removed, new, clips):
                self.trials[number, trial.layer, clips] = trial
                self.record(trial)
        return [self.trials[number, layer, clips] for layer in layers]

    def race(self, number: int, removed: Sequence[Layer], remaining: Sequence[Layer]) -> Removal:
        """Screen, then halve on growing parts of the clips until one is left."""
        sign = 1 if self.scorer.higher_is_better else -1
        field = list(remaining)
        if survivors(len(field)) < len(field):
            costs = self._screen(number, removed)
            field = _first(field, [costs[layer] for layer in field], survivors(len(field)))
        trials: list[Trial] = []
        for size, clips in schedule(len(field), self.scorer.clips):
            if trials:
                field = _first(field, [-sign * trial.score for trial in trials], size)
            trials = self.score(number, removed, field, clips)
        return decide(trials, self.scorer)

    def _screen(self, number: int, removed: Sequence[Layer]) -> dict[Layer, float]:
        """What screening said, in this round or the last that screened: found again where a search is resumed."""
        at = screened_in(number)
        if at not in self.screened:
            gone = removed[: at - 1]
            there = [layer for layer in self.pool if layer not in gone]
            costs = self.scorer.screen(gone, there, screening_clips(self.scorer.clips))
            self.screened[at] = dict(zip(there, costs, strict=True))
        return self.screened[at]


def _first(field: Sequence[Layer], costs: Sequence[float], count: int) -> list[Layer]:
    """The `count` cheapest, in the order of the field."""
    order = sorted(range(len(field)), key=lambda i: (costs[i], i))
    return [field[i] for i in sorted(order[:count])]


def screening_clips(clips: int) -> int:
    """Clips that racing screens on."""
    return max(1, clips // SCREEN_SHARE)


def survivors(field: int) -> int:
    """How many candidates the screening lets through."""
    return min(field, max(SCREENED, -(-field // 3)))


def rungs(clips: int) -> list[int]:
    """The growing parts of the clips that a race is run on, all of them last, if it gets so far."""
    steps = [max(1, clips // 4), max(1, clips // 2), clips]
    return sorted(set(steps))


def screened_in(number: int) -> int:
    """The round whose screening counts in this one."""
    return number - (number - 1) % SCREENED_FOR


def schedule(field: int, clips: int) -> list[tuple[int, int]]:
    """(candidates, clips) of each stage of a race after the screening."""
    if field == 1:
        return [(1, clips)]
    stages = []
    for part in rungs(clips):
        stages.append((field, part))
        field = (field + 1) // 2
        if field == 1:
            break
    return stages
