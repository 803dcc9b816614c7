"""The part of scoring that needs the model: a few clips through candidates, here or in a worker's process.

A task holds all that its result depends on but the model: the layers that are out, the candidates, the clips as they
were encoded, and texts. Results are numbers and token ids; who asked decides by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sordino.models.features import EncodedClip, Features
from sordino.models.worker import ModelWorker
from sordino.pruning import criteria
from sordino.pruning.engines import Engine, open_engine
from sordino.pruning.layer import Layer
from sordino.pruning.search import without
from sordino.pruning.speculative import Decoded


@dataclass
class ScoringWorker(ModelWorker):
    """A worker's model, and the engine of the layers that it last did without."""

    engine: tuple[tuple[tuple[Layer, ...], int, int], Engine] | None = field(default=None)

    @cached_property
    def reencoding(self) -> Features:
        """Another encoder's features are of no use to anything else."""
        return Features(self.speech, None)

    @contextmanager
    def without(self, gone: Sequence[Layer], max_new_tokens: int, memory: int) -> Iterator[Engine]:
        """An engine of the model without these layers. One for all tasks, so that prompts' common start is run once."""
        key = tuple(gone), max_new_tokens, memory
        with without(self.speech, gone):
            if self.engine is None or self.engine[0] != key:
                self.engine = key, open_engine(self.speech, max_new_tokens, memory)
            yield self.engine[1]

    def encoded(self, gone: Sequence[Layer], clips: Sequence[EncodedClip]) -> Sequence[EncodedClip]:
        """The clips as the encoder hears them that now is in the model."""
        if all(layer.scope == "decoder" for layer in gone):
            return clips
        return [self.reencoding.encode(clip.clip, clip.prompt) for clip in clips]


@dataclass(frozen=True)
class TranslateTask:
    """candidates: positions of single layers that are out beside `gone`; known: of each clip, as of the engine."""

    gone: tuple[Layer, ...]
    candidates: tuple[int | None, ...]
    clips: tuple[EncodedClip, ...]
    known: tuple[Sequence[Sequence[int]], ...]
    max_new_tokens: int
    memory: int


def translate(worker: ScoringWorker, task: TranslateTask) -> list[Decoded]:
    """Greedy ids of every clip, by its place in the task, and candidate."""
    with worker.without(task.gone, task.max_new_tokens, task.memory) as engine:
        clips = worker.encoded(task.gone, task.clips)
        return engine.translate(clips, range(len(clips)), task.candidates, dict(enumerate(task.known)))


@dataclass(frozen=True)
class ForcedTask:
    """One batch. criterion: loss or kl; answers: ids of each clip's."""

    criterion: str
    gone: tuple[Layer, ...]
    candidates: tuple[int | None, ...]
    clips: tuple[EncodedClip, ...]
    answers: tuple[Sequence[int], ...]
    memory: int


def forced(worker: ScoringWorker, task: ForcedTask) -> list[list[float]]:
    """Nats of every candidate and clip."""
    batch = range(len(task.clips))
    before: Sequence[Tensor] = ()
    if task.criterion == "kl":
        before = whole_logits(open_engine(worker.speech, 0, task.memory), task.clips, batch, task.answers)
    with worker.without(task.gone, 0, task.memory) as engine:
        clips = worker.encoded(task.gone, task.clips)
        return forced_values(engine, clips, batch, task.candidates, task.answers, before)


@dataclass(frozen=True)
class StatesTask:
    """One batch. criterion: influence or angular."""

    criterion: str
    gone: tuple[Layer, ...]
    clips: tuple[EncodedClip, ...]
    memory: int


def states(worker: ScoringWorker, task: StatesTask) -> dict[int, list[float]]:
    """Position of a layer -> the criterion's value of each clip."""
    with worker.without(task.gone, 0, task.memory) as engine:
        return states_values(engine, worker.encoded(task.gone, task.clips), range(len(task.clips)), task.criterion)


def whole_logits(
    engine: Engine, encoded: Sequence[EncodedClip], batch: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[Tensor]:
    """The engine's own logits at the answers of a batch's clips, (n, V) each."""
    return next(iter(engine.forced(encoded, batch, [None], answers)))[1]


def forced_values(
    engine: Engine,
    encoded: Sequence[EncodedClip],
    batch: Sequence[int],
    candidates: Sequence[int | None],
    answers: Sequence[Sequence[int]],
    before: Sequence[Tensor],
) -> list[list[float]]:
    """Nats of every candidate and clip of a batch: the divergence from the logits before, (n, V) of each clip; without
    those, the loss."""
    rows = []
    for _, logits in engine.forced(encoded, batch, candidates, answers):
        if before:
            rows.append([criteria.kl(*pair) for pair in zip(logits, before, strict=True)])
        else:
            ids = [torch.tensor(answer, device=logits[0].device) for answer in answers]
            rows.append([criteria.loss(*pair) for pair in zip(logits, ids, strict=True)])
    return rows


def states_values(
    engine: Engine, encoded: Sequence[EncodedClip], batch: Sequence[int], criterion: str
) -> dict[int, list[float]]:
    """Block influence or angular distance of each layer, by its position, and clip of a batch."""
    values: dict[int, list[float]] = {}
    for index, before, after, valid in engine.states(encoded, batch):
        row = criteria.influence(before, after, valid) if criterion == "influence" else criteria.angular(before, after)
        values[index] = row.tolist()
    return values
