"""Examples to batches: ids padded on the left, labels on the answer tokens alone, batches of similar length.

Labels are placed by position (the answer is each row's last tokens), never by searching for a prompt length:
with left padding `labels[:, :prompt_length]` masks the wrong tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.data.audio import load_clip
from sordino.data.clip import Clip
from sordino.models.base import AudioInputs, SpeechModel, pad_left
from sordino.models.features import EncodedClip

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One training pair. answer: target ids with the stop token.

    encoded: the clip's features, where the audio tower is frozen; else the clip is read and encoded in its step.
    """

    clip: Clip
    answer: list[int]
    encoded: EncodedClip | None = None

    @property
    def length(self) -> float:
        """For batches of similar length: seconds of audio, then answer tokens."""
        return (self.clip.seconds or 0.0) + len(self.answer) / 1000


@dataclass(frozen=True)
class Batch:
    """ids, mask, labels: (B, S). tower: (sum of A, D), or inputs: mel to run through a tower that is trained."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    tower: Tensor | None
    inputs: AudioInputs | None


def collate(speech: SpeechModel, examples: Sequence[Example], prompt: str) -> Batch:
    """Examples -> one batch on the model's device. Either all examples were encoded, or none."""
    device = speech.device
    encoded = [e.encoded for e in examples if e.encoded is not None]
    inputs: AudioInputs | None = None
    tower: Tensor | None = None
    if len(encoded) == len(examples):
        prompts = [h.ids for h in encoded]
        tower = torch.cat([h.tower for h in encoded]).to(device)
    else:
        waves = [load_clip(e.clip) for e in examples]
        inputs = speech.family.encode(speech.processor, waves, [prompt] * len(waves))
        prompts = inputs.input_ids
    rows = [ids + e.answer for ids, e in zip(prompts, examples, strict=True)]
    ids, mask = pad_left(rows, speech.pad_id(), device)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        n = len(example.answer)
        labels[row, -n:] = ids[row, -n:]
    return Batch(ids, mask, labels, tower, inputs)


def epoch_batches(lengths: Sequence[float], size: int, epoch: int, seed: int) -> list[list[int]]:
    """Every index once, in shuffled batches of similar length; the same for the same seed and epoch."""
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    window = size * 8  # sorted within so many clips: little padding, still a fresh mix every epoch
    found: list[list[int]] = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda i: lengths[i])
        found += [part[s : s + size] for s in range(0, len(part), size)]
    rng.shuffle(found)
    return found
