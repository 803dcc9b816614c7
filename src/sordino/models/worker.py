"""A model in a worker's hands: what it was given to open, and the encoding of clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sordino.data.clip import Clip
from sordino.models.features import WINDOW, EncodedClip, Features
from sordino.models.speech import SpeechModel
from sordino.runtime.executor import Executor, in_order
from sordino.runtime.progress import bar


@dataclass
class ModelWorker:
    """cache: where encoder states are kept, on a disk that all workers see."""

    speech: SpeechModel
    cache: Path

    @cached_property
    def features(self) -> Features:
        return Features(self.speech, self.cache)


@dataclass(frozen=True)
class EncodeTask:
    clips: tuple[Clip, ...]
    prompt: str


def encode(worker: ModelWorker, task: EncodeTask) -> list[EncodedClip]:
    return list(worker.features.encode_each(task.clips, task.prompt))


def encode_all(
    executor: Executor[ModelWorker], clips: Sequence[Clip], prompt: str, batch: int, label: str = "encoding audio"
) -> list[EncodedClip]:
    """As `Features.encode_all`, by workers. batch: their `encode_batch`, so that they make the same batches."""
    at_once = WINDOW * batch
    parts = [tuple(clips[first : first + at_once]) for first in range(0, len(clips), at_once)]
    done: list[tuple[int, list[EncodedClip]]] = []
    with bar(label, len(clips)) as advance:
        for pair in executor.run(encode, [EncodeTask(part, prompt) for part in parts], "part of the audio"):
            done.append(pair)
            advance(len(pair[1]))
    return [encoded for part in in_order(done) for encoded in part]
