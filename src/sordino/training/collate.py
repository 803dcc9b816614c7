"""Examples to batches, of similar length and in an order that the seed alone decides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sordino.data.audio import load_clip
from sordino.data.clip import Clip
from sordino.models.answers import IGNORED, AnswerBatch, answer_batch, encoded_batch
from sordino.models.features import EncodedClip
from sordino.models.speech import SpeechModel
from sordino.training.teacher_rows import StoredRows, joined


@dataclass(frozen=True)
class Example:
    """One training pair. answer: target ids with the stop token.

    encoded: the clip's features, where the audio encoder is frozen; else the clip is read and encoded in its step.
    teacher: where its probabilities at the answer's positions lie, which stay on disk until their step.
    matched: features that the encoder should give for it (training/matching.py); the answer then says nothing.
    """

    clip: Clip
    answer: list[int]
    encoded: EncodedClip | None = None
    teacher: StoredRows | None = None
    matched: EncodedClip | None = None

    @property
    def positions(self) -> int:
        """What a step's loss is the mean over: answer tokens, or rows of states to match."""
        return self.matched.rows if self.matched else len(self.answer)

    @property
    def length(self) -> float:
        """For batches of similar length: seconds of audio, then answer tokens."""
        return (self.clip.seconds or 0.0) + len(self.answer) / 1000


def collate(speech: SpeechModel, examples: Sequence[Example], prompt: str) -> AnswerBatch:
    """Examples -> one batch on the model's device. Either all examples are encoded, or none; so it is of a teacher."""
    batch = _collate(speech, examples, prompt)
    teacher = [example.teacher for example in examples if example.teacher is not None]
    if len(teacher) < len(examples):
        return batch
    return replace(batch, teacher=joined(teacher, speech.device))


def _collate(speech: SpeechModel, examples: Sequence[Example], prompt: str) -> AnswerBatch:
    answers = [example.answer for example in examples]
    encoded = [example.encoded for example in examples if example.encoded is not None]
    if len(encoded) == len(examples):
        return encoded_batch(speech, encoded, answers)
    waves = [load_clip(example.clip) for example in examples]
    inputs = speech.family.audio.prepare(speech.processor, waves, [prompt] * len(waves))
    batch = answer_batch(speech, inputs.input_ids, answers, inputs=inputs)
    matched = [example.matched.states for example in examples if example.matched is not None]
    return replace(batch, matched=matched or None)


def silenced(batch: AnswerBatch, counted: int = 0) -> AnswerBatch:
    """The same forward pass with the answer tokens of the first `counted` rows alone: others run so that all processes
    run as many."""
    labels = batch.labels.clone()
    labels[counted:] = IGNORED
    teacher = batch.teacher.rows(slice(int((labels != IGNORED).sum()))) if batch.teacher else None
    return replace(batch, labels=labels, teacher=teacher)


def epoch_batches(lengths: Sequence[float], size: int, epoch: int, seed: int) -> list[list[int]]:
    """Every index once, in shuffled batches of similar length; the same for the same seed and epoch."""
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    window = size * 8  # sorted within so many clips: little padding, still a fresh mix every epoch
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda i: lengths[i])
        batches += [part[s : s + size] for s in range(0, len(part), size)]
    rng.shuffle(batches)
    return batches
