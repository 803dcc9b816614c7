"""Batched greedy translation: heard clips -> hypotheses.

Greedy whatever the checkpoint's generation_config says (Qwen2-Audio's samples and penalises repetition), left
padded, sorted by length so that batches waste little, returned in the order of the input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sordino.families.base import SpeechModel, pad_left
from sordino.features import Heard


@dataclass(frozen=True)
class Decoding:
    """batch_size: clips; max_new_tokens: a hypothesis is cut there."""

    batch_size: int = 16
    max_new_tokens: int = 256


@dataclass(frozen=True)
class Hypothesis:
    """tokens: generated, the stop token not counted; seconds: this clip's share of its batch's time."""

    id: str
    text: str
    tokens: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "text": self.text, "tokens": self.tokens, "seconds": round(self.seconds, 4)}


def batches(heard: Sequence[Heard], size: int) -> list[list[int]]:
    """Indices in batches of clips of similar length."""
    order = sorted(range(len(heard)), key=lambda i: (len(heard[i].ids), i))
    return [order[s : s + size] for s in range(0, len(order), size)]


@torch.inference_mode()
def translate(
    speech: SpeechModel,
    heard: Sequence[Heard],
    options: Decoding,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Hypothesis]:
    """Hypotheses in the order of `heard`."""
    found: dict[int, Hypothesis] = {}
    for batch in batches(heard, options.batch_size):
        start = time.perf_counter()
        rows = generate(speech, [heard[i] for i in batch], options.max_new_tokens)
        share = (time.perf_counter() - start) / len(batch)
        for i, ids in zip(batch, rows, strict=True):
            found[i] = Hypothesis(heard[i].clip.id, speech.decode(ids), len(ids), share)
        advance(len(batch))
    return [found[i] for i in range(len(heard))]


def generate(speech: SpeechModel, heard: Sequence[Heard], max_new_tokens: int) -> list[list[int]]:
    """Greedy ids of one batch, cut before the first stop token."""
    from transformers import GenerationConfig

    ids, mask = pad_left([h.ids for h in heard], speech.pad_id(), speech.device)
    tower = torch.cat([h.tower for h in heard]).to(speech.device, speech.dtype)
    embeds = speech.embed(ids, speech.family.project(speech.model, tower))  # (B, S, H)
    stops = speech.stop_ids()
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=speech.pad_id(),
    )
    # `generate` fills what a given config leaves unset from the stored one (min_new_tokens, no_repeat_ngram_size,
    # ...), so the stored one is put aside: nothing of it may leak in
    stored, speech.model.generation_config = speech.model.generation_config, greedy
    try:
        out = speech.model.generate(inputs_embeds=embeds, attention_mask=mask)
    finally:
        speech.model.generation_config = stored
    return [cut(row, stops) for row in out.tolist()]


def cut(ids: list[int], stops: Sequence[int]) -> list[int]:
    """ids up to the first stop token."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
