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
from sordino.pruning import criteria
from sordino.pruning.engines import Engine, open_engine
from sordino.pruning.layer import Layer, renumbered
from sordino.pruning.search import Trial, rungs, schedule, screened_in, screening_clips, survivors, without
from sordino.runtime.executor import Threads, parallel_map

RESAMPLES = 1000
KNOWN_TEXTS = 16  # other translations of a clip that guesses are looked up in
LEAST_MEMORY = 48 * 2**20  # bytes for batches that one worker should have
Key = tuple[tuple[Layer, ...], int]  # (layers that are out, item) -> greedy ids
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
    ) -> None:
        """reencode: encodes a clip with the audio encoder as it then is, for candidates of the encoder."""
        self.speech, self.tasks, self.terms, self.reencode = speech, tasks, terms, reencode
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
        if all(layer.scope == "decoder" for layer in removed):
            return self.encoded
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
        for gone, group, encoded in self._groups(removed, candidates):
            with without(self.speech, gone):
                workers = self._workers()
                engine = self._engine(gone, workers)
                named = {position(gone, c): c for c in group}
                # the unpruned model is scored on all clips at once
                for first, last in [(0, clips)] if candidates == [None] else self._segments(clips):
                    items = self._items(first, last)
                    known = {item: self._known(gone, item) for item in items}
                    drafts = {item: texts[0] for item, texts in known.items()}
                    groups = engine.groups(encoded, items, drafts, len(group), workers)
                    new = [
                        g
                        for g in groups
                        if any((out_of(gone, c), i) not in self.translations for c in group for i in g)
                    ]
                    done = parallel_map(
                        self.speech.device,
                        lambda part: engine.translate(encoded, part, list(named), known),  # noqa: B023 (used here)
                        new,
                        workers,
                    )
                    for results in done:
                        rows = [((out_of(gone, named[f.candidate]), f.clip), f.ids) for f in results]
                        self._add(rows)
                        self.remember(rows)
                        self.advance(len(rows))

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
        translations: dict[Layer | None, dict[int, float]] = {c: {} for c in candidates}
        answers = {i: self.answers[i] for i in items}
        device, workers = self.speech.device, self._workers()
        whole = open_engine(self.speech, 0, self.terms.memory // workers)
        batches = whole.spread(self.encoded, items, answers, workers)
        for gone, group, encoded in self._groups(removed, candidates):
            # the group of one encoder candidate is scored as the whole of a model without it
            names = group if group != [None] or gone == list(removed) else [gone[-1]]
            with without(self.speech, gone):
                engine = open_engine(self.speech, 0, self.terms.memory // workers)
            values = partial(self._values_of, engine, encoded, [position(gone, c) for c in group])
            for first in range(0, len(batches), workers):
                lot = batches[first : first + workers]
                before: list[list[Tensor]] = [[] for _ in lot]
                if criterion == "kl":
                    before = list(parallel_map(device, partial(self._logits, whole), lot, workers))
                with without(self.speech, gone):
                    results = parallel_map(device, values, zip(lot, before, strict=True), workers)
                    for batch, rows in zip(lot, results, strict=True):
                        for name, row in zip(names, rows, strict=True):
                            translations[name] |= dict(zip(batch, row, strict=True))
                        self.advance(len(batch) * len(names))
        return {c: [translations[c][i] for i in items] for c in candidates}

    def _logits(self, engine: Engine, batch: Sequence[int]) -> list[Tensor]:
        """The whole model's logits at the answers of a batch."""
        return next(iter(engine.forced(self.encoded, batch, [None], [self.answers[i] for i in batch])))[1]

    def _values_of(
        self,
        engine: Engine,
        encoded: Sequence[EncodedClip],
        candidates: Sequence[int | None],
        job: tuple[Sequence[int], Sequence[Tensor]],
    ) -> list[list[float]]:
        """Nats of every candidate and clip of a batch: the divergence from the logits before; without those, the loss.

        job: the batch's items, and a clip's logits before (n, V) each.
        """
        batch, before = job
        rows = []
        answers = [self.answers[i] for i in batch]
        for _, logits in engine.forced(encoded, batch, candidates, answers):
            if before:
                rows.append([criteria.kl(*pair) for pair in zip(logits, before, strict=True)])
            else:
                ids = [torch.tensor(answer, device=self.speech.device) for answer in answers]
                rows.append([criteria.loss(*pair) for pair in zip(logits, ids, strict=True)])
        return rows

    def _engine(self, gone: Sequence[Layer], workers: int) -> Engine:
        """For the model as it now is: one for all stages of a race, so that prompts' common start is run once."""
        if self.engine is None or self.engine[0] != list(gone):
            per_worker = self.terms.memory // workers
            self.engine = list(gone), open_engine(self.speech, self.terms.max_new_tokens, per_worker)
        return self.engine[1]

    def _workers(self) -> int:
        """How many batches are worked on at once. Plain generation goes through views, one at a time."""
        if not self.speech.family.decoder.line:
            return 1
        return Threads.on(self.speech.device, self.terms.memory // LEAST_MEMORY).workers

    def _states(
        self, removed: Sequence[Layer], candidates: Sequence[Layer | None], clips: int
    ) -> dict[Layer | None, list[float]]:
        """Block influence or angular distance of each decoder layer per item; 0 for the model as it is."""
        items = self._items(0, clips)
        by_layer: dict[int, dict[int, float]] = {}
        encoded = self._encoded(removed)
        with without(self.speech, removed):
            engine = open_engine(self.speech, 0, self.terms.memory)
            for batch in engine.batches(encoded, items, {}):
                for index, before, after, valid in engine.states(encoded, batch):
                    if self.terms.criterion == "influence":
                        values = criteria.influence(before, after, valid)
                    else:
                        values = criteria.angular(before, after)
                    by_layer.setdefault(index, {}).update(zip(batch, values.tolist(), strict=True))
                self.advance(len(batch) * len(candidates))
        at = {c: position(removed, c) for c in candidates}
        return {c: [0.0 if (p := at[c]) is None else by_layer[p][i] for i in items] for c in candidates}


def out_of(removed: Sequence[Layer], candidate: Layer | None) -> tuple[Layer, ...]:
    """The layers a candidate does without, in one order whichever way they went."""
    return tuple(sorted([*removed, *([candidate] if candidate else [])]))


def position(removed: Sequence[Layer], layer: Layer | None) -> int | None:
    """As `renumbered`: the index alone, None where no layer goes."""
    return None if layer is None else renumbered(layer, removed).index


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
