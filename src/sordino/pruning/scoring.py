"""Scores candidates for removal: the model, the select clips and a criterion, put together fast.

Translations go through `speculative`: clips are encoded once, candidates share prefix layers, drafts are the current
model's own translations. What has been translated is remembered (and handed to `remember`, so that a killed search
loses at most one batch), which serves resuming, the next round's drafts and the next stage of a race alike.

Several target languages are ranked together: each brings its prompt and references, and a candidate's score is the
mean of its scores.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.metrics import overlap
from sordino.metrics import registry as metrics
from sordino.models.features import EncodedClip
from sordino.models.speech import SpeechModel
from sordino.pruning import criteria, scoring_worker
from sordino.pruning.engines import Engine, open_engine
from sordino.pruning.layer import Layer
from sordino.pruning.lots import Key, Lot, Rows, names_of, out_of, position
from sordino.pruning.scoring_worker import (
    ForcedTask,
    ScoringWorker,
    StatesTask,
    forced_values,
    states_values,
    whole_logits,
)
from sordino.pruning.search import Trial, rungs, schedule, screened_in, screening_clips, survivors, without
from sordino.runtime.executor import Executor, Threads, parallel_map

RESAMPLES = 1000
KNOWN_TEXTS = 16  # other translations of a clip that guesses are looked up in
LEAST_MEMORY = 48 * 2**20  # bytes for batches that one worker should have
Advance = Callable[[int], None]


@dataclass(frozen=True)
class TargetLanguage:
    """One target language on the select clips. answers: ids of the references, with the stop token."""

    target: str
    encoded: Sequence[EncodedClip]
    references: Sequence[str]
    answers: Sequence[Sequence[int]]


@dataclass(frozen=True)
class ScoringOptions:
    """How candidates are scored. memory: bytes for batches; racing: clips are translated in growing parts."""

    criterion: str
    max_new_tokens: int
    memory: int
    seed: int = 0
    racing: bool = False


class ClipScorer:
    """The CandidateScorer of `importance.search`. Items are clips, language after language."""

    def __init__(
        self,
        speech: SpeechModel,
        tasks: Sequence[TargetLanguage],
        terms: ScoringOptions,
        reencode: Callable[[EncodedClip], EncodedClip],
        *,
        translations: Mapping[Key, list[int]] | None = None,
        remember: Callable[[Sequence[tuple[Key, list[int]]]], None] = lambda _: None,
        advance: Advance = lambda _: None,
        executor: Executor[ScoringWorker] | None = None,
    ) -> None:
        """reencode: encodes a clip with the audio encoder as it then is, for candidates of the encoder.

        executor: who runs the model instead of this process, whose `speech` then needs no weights.
        """
        self.speech, self.tasks, self.terms, self.reencode = speech, tasks, terms, reencode
        self.executor = executor
        self.device = speech.device if executor is None else torch.device(executor.device_type)
        self.translations: dict[Key, list[int]] = {}
        self.texts: dict[
            int, dict[tuple[int, ...], int]
        ] = {}  # of each item: text -> layers that were out, as they came
        self._add((translations or {}).items())
        self.remember, self.advance = remember, advance
        self.clips = len(tasks[0].encoded)
        self.encoded = [h for task in tasks for h in task.encoded]
        self.answers = [a for task in tasks for a in task.answers]
        self.higher_is_better = criteria.higher_is_better(terms.criterion)
        self.scores: dict[tuple[int, Layer | None, int], NDArray[np.float64]] = {}
        self.engine: tuple[list[Layer], Engine] | None = None  # and the layers that it does without

    def trials(
        self, number: int, removed: Sequence[Layer], candidates: Sequence[Layer | None], clips: int
    ) -> Iterator[Trial]:
        if self.terms.criterion in criteria.TRANSLATION:
            self._translate(removed, candidates, clips)
            for candidate in candidates:
                gone = out_of(removed, candidate)
                texts = tuple(self.speech.decode(self.translations[gone, item]) for item in self._items(0, clips))
                yield self._finish(Trial(number, candidate, 0.0, clips, hypotheses=texts))
            return
        if self.terms.criterion in criteria.FORCED:
            values = self._forced(self.terms.criterion, removed, candidates, clips)
        else:
            values = self._states(removed, candidates, clips)
        for candidate in candidates:
            yield self._finish(Trial(number, candidate, 0.0, clips, values=tuple(values[candidate])))

    def screen(self, removed: Sequence[Layer], candidates: Sequence[Layer], clips: int) -> list[float]:
        weights = self._weights(clips)
        values = self._forced("kl", removed, candidates, clips)
        return [float(np.sum(values[c]) / weights.sum()) for c in candidates]

    def resampled(self, trial: Trial) -> NDArray[np.float64]:
        key = trial.round, trial.layer, trial.clips
        if key not in self.scores:  # asked for twice: for the interval, and for who wins the round
            self.scores[key] = self._scored(trial)[1]
        return self.scores[key]

    def _scored(self, trial: Trial) -> tuple[float, NDArray[np.float64]]:
        """Mean over the languages of the score, and of that on resamples: the same draws in every language."""
        if trial.hypotheses is not None:
            metric = metrics.get(self.terms.criterion)
            assert isinstance(metric, overlap.Overlap)
            pairs = [
                metric.resampled(texts, refs, task.target, count=RESAMPLES, seed=self.terms.seed)
                for task, texts, refs in self._by_task(trial)
            ]
        else:
            drawn = np.stack(list(overlap.resamples(trial.clips, RESAMPLES, self.terms.seed)))
            pairs = [
                (float(values.sum() / weights.sum()), values[drawn].sum(1) / weights[drawn].sum(1))
                for values, weights in self._values(trial)
            ]
        return float(np.mean([score for score, _ in pairs])), np.asarray(np.mean([r for _, r in pairs], axis=0))

    def _finish(self, trial: Trial) -> Trial:
        """The trial with its score and interval."""
        score, resampled = self._scored(trial)
        self.scores[trial.round, trial.layer, trial.clips] = resampled
        return dataclasses.replace(trial, score=score, interval=overlap.percentile_interval(resampled))

    def _values(self, trial: Trial) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Values and weights of a trial's clips, per target language."""
        values, weights = np.array(trial.values), self._weights(trial.clips)
        count = len(self.tasks)
        return list(zip(np.split(values, count), np.split(weights, count), strict=True))

    def _by_task(self, trial: Trial) -> Iterator[tuple[TargetLanguage, list[str], list[str]]]:
        """Hypotheses and references of a trial, per target language."""
        assert trial.hypotheses is not None
        for i, task in enumerate(self.tasks):
            part = trial.hypotheses[i * trial.clips : (i + 1) * trial.clips]
            yield task, list(part), list(task.references[: trial.clips])

    def _items(self, first: int, last: int) -> list[int]:
        """Items of the clips first to last - 1 in every language."""
        return [task * self.clips + clip for task in range(len(self.tasks)) for clip in range(first, last)]

    def _weights(self, clips: int) -> NDArray[np.float64]:
        """What each item's value is a sum over: answer tokens, prompt positions, or one."""
        items = self._items(0, clips)
        if self.terms.criterion == "influence":
            return np.array([len(self.encoded[i].ids) for i in items], dtype=np.float64)
        if self.terms.criterion == "angular":
            return np.ones(len(items))
        return np.array([len(self.answers[i]) for i in items], dtype=np.float64)

    def _segments(self, clips: int) -> list[tuple[int, int]]:
        """Parts in which clips are translated: whole, or as a race comes by them. Batches never cross a border."""
        steps = rungs(self.clips) if self.terms.racing else []
        return list(itertools.pairwise(sorted({0, clips, *(s for s in steps if s < clips)})))

    def _encoded(self, removed: Sequence[Layer]) -> Sequence[EncodedClip]:
        """The clips as the encoder without the removed layers hears them."""
        if self.executor is not None or all(layer.scope == "decoder" for layer in removed):
            return self.encoded  # workers encode anew what they are given
        with without(self.speech, removed):
            return [self.reencode(h) for h in self.encoded]

    def _groups(
        self, removed: Sequence[Layer], candidates: Sequence[Layer | None]
    ) -> Iterator[tuple[list[Layer], list[Layer | None], Sequence[EncodedClip]]]:
        """Candidates that share prefix layers: all of the decoder; each of the encoder by itself, as its own model."""
        together = [c for c in candidates if c is None or c.scope == "decoder"]
        if together:
            yield list(removed), together, self._encoded(removed)
        for candidate in candidates:
            if candidate is not None and candidate.scope == "encoder":
                gone = [*removed, candidate]
                yield gone, [None], self._encoded(gone)

    def _translate(self, removed: Sequence[Layer], candidates: Sequence[Layer | None], clips: int) -> None:
        """Fill `translations` with the greedy ids of every candidate on the first `clips` clips."""
        if self.executor is None:
            for lot in self._lots(removed, candidates, clips, self._workers()):
                work = partial(lot.engine.translate, lot.encoded, candidates=list(lot.named), known=lot.known)
                for results in parallel_map(self.device, work, lot.parts, self._workers()):
                    rows = lot.rows(results)
                    self._add(rows)
                    self.remember(rows)
                    self.advance(len(rows))
            return
        lots = self._lots(removed, candidates, clips, self.executor.workers)
        parts = [(lot, part) for lot in lots for part in lot.parts]
        tasks = [lot.task(part, self.terms.max_new_tokens, self.terms.memory) for lot, part in parts]
        done: dict[int, Rows] = {}
        for place, results in self.executor.run(scoring_worker.translate, tasks, "part of the clips"):
            lot, part = parts[place]
            done[place] = lot.rows(dataclasses.replace(one, clip=part[one.clip]) for one in results)
            self.remember(done[place])
            self.advance(len(done[place]))
        for place in sorted(done):  # in one order, however fast the workers are
            self._add(done[place])

    def _lots(
        self, removed: Sequence[Layer], candidates: Sequence[Layer | None], clips: int, workers: int
    ) -> Iterator[Lot]:
        """What is left to translate; the model does without a lot's layers until the next is asked for."""
        for gone, group, encoded in self._groups(removed, candidates):
            with without(self.speech, gone):
                engine = self._engine(gone)
                # the unpruned model is scored on all clips at once
                for first, last in [(0, clips)] if candidates == [None] else self._segments(clips):
                    items = self._items(first, last)
                    known = {item: self._known(gone, item) for item in items}
                    drafts = {item: texts[0] for item, texts in known.items()}
                    new = [
                        g
                        for g in engine.groups(encoded, items, drafts, len(group), workers)
                        if any((out_of(gone, c), i) not in self.translations for c in group for i in g)
                    ]
                    yield Lot(tuple(gone), {position(gone, c): c for c in group}, engine, encoded, new, known)

    def _add(self, rows: Iterable[tuple[Key, list[int]]]) -> None:
        """Take in translations, and keep apart the texts of a clip that differ."""
        for (gone, item), ids in rows:
            self.translations[gone, item] = ids
            self.texts.setdefault(item, {}).setdefault(tuple(ids), len(gone))

    def _known(self, gone: Sequence[Layer], item: int) -> list[Sequence[int]]:
        """What candidates may say: first a draft, then the latest other translations of the clip, and its reference.

        Nothing of this round, so that a resumed search runs the same steps as one that was not interrupted.
        """
        draft = self._draft(gone, item)
        texts = self.texts.get(item, {})
        others = [text for text in reversed(texts) if texts[text] <= len(gone) and list(text) != draft]
        return [draft, *others[:KNOWN_TEXTS], self.answers[item][:-1]]

    def _draft(self, gone: Sequence[Layer], item: int) -> list[int]:
        """The translation by the model closest to this one; before there is any, the reference, as a guess."""
        for last in range(len(gone), -1, -1):
            ids = self.translations.get((out_of(gone[:last], None), item))
            if ids is not None:
                return ids
        return list(self.answers[item][:-1][: self.terms.max_new_tokens])

    def _forced(
        self, criterion: str, removed: Sequence[Layer], candidates: Sequence[Layer | None], clips: int
    ) -> dict[Layer | None, list[float]]:
        """Loss or divergence of each candidate per item, summed over the answer's tokens."""
        items = self._items(0, clips)
        answers = {i: self.answers[i] for i in items}
        workers = self._workers()
        whole = open_engine(self.speech, 0, self.terms.memory // workers)
        batches = whole.spread(self.encoded, items, answers, workers)
        if self.executor is not None:
            return self._forced_by(self.executor, criterion, removed, candidates, items, batches)
        translations: dict[Layer | None, dict[int, float]] = {c: {} for c in candidates}
        for gone, group, encoded in self._groups(removed, candidates):
            names = names_of(gone, group, removed)
            with without(self.speech, gone):
                engine = open_engine(self.speech, 0, self.terms.memory // workers)
            values = partial(self._values_of, engine, encoded, [position(gone, c) for c in group])
            for first in range(0, len(batches), workers):
                lot = batches[first : first + workers]
                before: list[list[Tensor]] = [[] for _ in lot]
                if criterion == "kl":
                    before = list(parallel_map(self.device, partial(self._logits, whole), lot, workers))
                with without(self.speech, gone):
                    results = parallel_map(self.device, values, zip(lot, before, strict=True), workers)
                    for batch, rows in zip(lot, results, strict=True):
                        for name, row in zip(names, rows, strict=True):
                            translations[name] |= dict(zip(batch, row, strict=True))
                        self.advance(len(batch) * len(names))
        return {c: [translations[c][i] for i in items] for c in candidates}

    def _forced_by(
        self,
        executor: Executor[ScoringWorker],
        criterion: str,
        removed: Sequence[Layer],
        candidates: Sequence[Layer | None],
        items: Sequence[int],
        batches: Sequence[Sequence[int]],
    ) -> dict[Layer | None, list[float]]:
        """As `_forced`, in the same batches, which the last bits depend on. Few batches are dealt out by candidates."""
        values: dict[Layer | None, dict[int, float]] = {c: {} for c in candidates}
        shares = max(1, executor.workers // len(batches))
        jobs = []
        for gone, group, _ in self._groups(removed, candidates):
            names = names_of(gone, group, removed)
            size = -(-len(group) // shares)
            for first in range(0, len(group), size):
                at = tuple(position(gone, c) for c in group[first : first + size])
                jobs += [(tuple(gone), at, names[first : first + size], batch) for batch in batches]
        tasks = (
            ForcedTask(
                criterion,
                gone,
                at,
                tuple(self.encoded[i] for i in batch),
                tuple(self.answers[i] for i in batch),
                self.terms.memory // self._workers(),
            )
            for gone, at, _, batch in jobs
        )
        for place, rows in executor.run(scoring_worker.forced, tasks, "part of the clips"):
            _, _, names, batch = jobs[place]
            for name, row in zip(names, rows, strict=True):
                values[name] |= dict(zip(batch, row, strict=True))
            self.advance(len(batch) * len(names))
        return {c: [values[c][i] for i in items] for c in candidates}

    def _logits(self, engine: Engine, batch: Sequence[int]) -> list[Tensor]:
        """The whole model's logits at the answers of a batch."""
        return whole_logits(engine, self.encoded, batch, [self.answers[i] for i in batch])

    def _values_of(
        self,
        engine: Engine,
        encoded: Sequence[EncodedClip],
        candidates: Sequence[int | None],
        job: tuple[Sequence[int], Sequence[Tensor]],
    ) -> list[list[float]]:
        """job: the batch's items, and a clip's logits before (n, V) each."""
        batch, before = job
        return forced_values(engine, encoded, batch, candidates, [self.answers[i] for i in batch], before)

    def _engine(self, gone: Sequence[Layer]) -> Engine:
        """For the model as it now is: one for all stages of a race, so that prompts' common start is run once."""
        if self.engine is None or self.engine[0] != list(gone):
            self.engine = list(gone), open_engine(self.speech, self.terms.max_new_tokens, self._memory())
        return self.engine[1]

    def _memory(self) -> int:
        """Bytes for batches of one worker: processes have their own."""
        return self.terms.memory // (self._workers() if self.executor is None else 1)

    def _workers(self) -> int:
        """How many batches are worked on at once in one process. Plain generation goes through views, one at a time."""
        if not self.speech.family.decoder.line:
            return 1
        return Threads.on(self.device, self.terms.memory // LEAST_MEMORY).workers

    def _states(
        self, removed: Sequence[Layer], candidates: Sequence[Layer | None], clips: int
    ) -> dict[Layer | None, list[float]]:
        """Block influence or angular distance of each decoder layer per item; 0 for the model as it is."""
        items = self._items(0, clips)
        by_layer: dict[int, dict[int, float]] = {}
        encoded = self._encoded(removed)
        with without(self.speech, removed):
            engine = open_engine(self.speech, 0, self.terms.memory)
            batches = engine.batches(encoded, items, {})
            for place, values in self._states_of(engine, removed, encoded, batches):
                for index, row in values.items():
                    by_layer.setdefault(index, {}).update(zip(batches[place], row, strict=True))
                self.advance(len(batches[place]) * len(candidates))
        at = {c: position(removed, c) for c in candidates}
        return {c: [0.0 if (p := at[c]) is None else by_layer[p][i] for i in items] for c in candidates}

    def _states_of(
        self,
        engine: Engine,
        removed: Sequence[Layer],
        encoded: Sequence[EncodedClip],
        batches: Sequence[Sequence[int]],
    ) -> Iterable[tuple[int, dict[int, list[float]]]]:
        """(place, values by the layer's position and clip) of every batch."""
        criterion, memory = self.terms.criterion, self.terms.memory
        if self.executor is None:
            return enumerate(states_values(engine, encoded, batch, criterion) for batch in batches)
        clips = (tuple(encoded[i] for i in batch) for batch in batches)
        tasks = [StatesTask(criterion, tuple(removed), part, memory) for part in clips]
        return self.executor.run(scoring_worker.states, tasks, "part of the clips")


def work(pool: int, remove: int, clips: int, racing: bool) -> int:
    """Translations (or forced passes) that a search of decoder layers comes to, for its progress bar."""
    rounds = [pool - i for i in range(remove)]
    if not racing:
        return clips * (1 + sum(rounds))
    total, before = clips, 0
    for number, remaining in enumerate(rounds, 1):
        field, before = survivors(remaining), 0
        total += remaining * screening_clips(clips) if field < remaining and screened_in(number) == number else 0
        for size, part in schedule(field, clips):
            total, before = total + size * (part - before), part
    return total + clips - before
