"""Batched translation: encoded clips -> hypotheses, greedy, or sampled for those who ask for it.

Of the checkpoint's generation config the suppressed tokens alone count (Qwen2-Audio's samples and penalises
repetition); left padded, sorted by length so that batches waste little, returned in the order of the input.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sordino.models.features import EncodedClip
from sordino.models.speech import SpeechModel, batches_by_length, pad_left


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


def batches(encoded: Sequence[EncodedClip], size: int) -> list[list[int]]:
    """Indices in batches of clips of similar length."""
    return batches_by_length([len(clip.ids) for clip in encoded], size)


def translate(
    speech: SpeechModel,
    encoded: Sequence[EncodedClip],
    options: Decoding,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Hypothesis]:
    """Hypotheses in the order of `encoded`."""
    hypotheses: dict[int, Hypothesis] = {}
    for batch in batches(encoded, options.batch_size):
        start = time.perf_counter()
        rows = generate(speech, [encoded[i] for i in batch], options.max_new_tokens)
        share = (time.perf_counter() - start) / len(batch)
        for i, ids in zip(batch, rows, strict=True):
            hypotheses[i] = Hypothesis(encoded[i].clip.id, speech.decode(ids), len(ids), share)
        advance(len(batch))
    return [hypotheses[i] for i in range(len(encoded))]


class EpsilonSampling:
    """Samples among the tokens of at least probability `epsilon` (Hewitt et al. 2022; for MBR Freitag et al. 2023).

    A row's token is where its own random number falls in the cumulated probabilities, so that what is drawn for a clip
    does not depend on the rest of the batch. `generate` stays greedy: every other token is ruled out.
    """

    def __init__(self, draws: Tensor, temperature: float, epsilon: float) -> None:
        """draws: (B, max_new_tokens), uniform in [0, 1), as `uniform` gives them."""
        self.draws, self.temperature, self.epsilon = draws, temperature, epsilon

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """ids: (B, new tokens so far); scores: (B, V) -> (B, V), -inf for all but the token drawn."""
        kept = int(min(scores.shape[-1], 1 / self.epsilon)) if self.epsilon else scores.shape[-1]
        top = torch.softmax(scores.float() / self.temperature, -1).topk(kept)  # no more can reach epsilon
        first = top.values[:, :1]
        weights = top.values.where((top.values >= self.epsilon) | (top.values == first), 0)
        tokens, order = top.indices.sort()  # by id: two nearly equal tokens must not change places
        below = weights.gather(-1, order).cumsum(-1)  # (B, kept)
        total = below[:, -1:].contiguous()
        drawn = torch.searchsorted(below, total * self.draws[:, ids.shape[1], None].to(total), right=True)
        drawn = torch.minimum(drawn, torch.searchsorted(below, total))  # rounding may have reached the total
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens.gather(-1, drawn), 0)


def uniform(seed: int, name: str, sample: int, count: int) -> Tensor:
    """`count` numbers in [0, 1) for one sample of one clip, whatever else is drawn: (count,) float32."""
    digest = hashlib.sha256(f"{seed}\0{sample}\0{name}".encode()).digest()
    return torch.from_numpy(np.random.default_rng(list(digest)).random(count, dtype=np.float32))


@torch.inference_mode()
def generate(
    speech: SpeechModel, encoded: Sequence[EncodedClip], max_new_tokens: int, sampling: EpsilonSampling | None = None
) -> list[list[int]]:
    """Ids of one batch, greedy unless sampled, cut before the first stop token.

    A row of `max_new_tokens` ids has not come to its end.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    ids, mask = pad_left([h.ids for h in encoded], speech.pad_id(), speech.device)
    given = speech.inputs(ids, mask, speech.project([h.states for h in encoded]))
    stops, suppressed = speech.stop_ids(), speech.suppressed_ids()
    if speech.external_decoder:
        if sampling:
            raise ValueError("a decoder outside is greedy")
        prompts = [row[-len(h.ids) :] for row, h in zip(given["inputs_embeds"], encoded, strict=True)]
        return speech.external_decoder.greedy(prompts, stops, max_new_tokens, suppressed)
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        suppress_tokens=suppressed or None,
        pad_token_id=speech.pad_id(),
    )
    # `generate` fills what a given config leaves unset from the stored one (min_new_tokens, no_repeat_ngram_size,
    # ...), so the stored one is put aside: nothing of it may leak in
    stored, speech.model.generation_config = speech.model.generation_config, greedy
    try:
        scale = speech.family.decoder.scaling(speech.model)
        shaping = LogitsProcessorList([lambda _, scores: scores / scale, sampling] if sampling else [])
        out = speech.model.generate(**given, logits_processor=shaping)
    finally:
        speech.model.generation_config = stored
        speech.family.decoder.forget(speech.model)
    return [cut(row, stops) for row in out.tolist()]


def cut(ids: list[int], stops: Sequence[int]) -> list[int]:
    """ids up to the first stop token."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
