"""Scoring candidates the slow way, for families without a decoder line: views and plain batched generation.

Offers what `speculative.SpeculativeDecoder` offers, so that the search above it is the same. One batch at a time, since
a view changes the model while it lasts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sordino.models.answers import SpeechLM, encoded_batch
from sordino.models.features import EncodedClip
from sordino.models.generation import generate
from sordino.models.speech import SpeechModel, batches_by_length, pad_left
from sordino.pruning.layers import only
from sordino.pruning.speculative import Decoded

BATCH = 16  # clips


class PlainDecoder:
    """The current decoder, and the same without single layers, over clips."""

    def __init__(self, speech: SpeechModel, max_new_tokens: int, memory: int) -> None:
        """memory: not used; batches have a fixed size."""
        self.speech, self.max_new_tokens = speech, max_new_tokens
        self.layers = speech.layer_count("decoder")

    def batches(
        self, encoded: Sequence[EncodedClip], clips: Sequence[int], drafts: Mapping[int, Sequence[int]]
    ) -> list[list[int]]:
        """Clips of similar length together."""
        lengths = [len(encoded[clip].ids) + len(drafts.get(clip, ())) for clip in clips]
        return [[clips[i] for i in batch] for batch in batches_by_length(lengths, BATCH)]

    def groups(
        self,
        encoded: Sequence[EncodedClip],
        clips: Sequence[int],
        drafts: Mapping[int, Sequence[int]],
        candidates: int,
        workers: int,
    ) -> list[list[int]]:
        """Clips for one call of `translate` each."""
        return self.batches(encoded, clips, {})

    def spread(
        self, encoded: Sequence[EncodedClip], clips: Sequence[int], drafts: Mapping[int, Sequence[int]], workers: int
    ) -> list[list[int]]:
        """As `batches`."""
        return self.batches(encoded, clips, drafts)

    def translate(
        self,
        encoded: Sequence[EncodedClip],
        clips: Sequence[int],
        candidates: Sequence[int | None],
        known: Mapping[int, Sequence[Sequence[int]]],
    ) -> list[Decoded]:
        """Greedy ids of every clip by every candidate, in the order given. known: not used."""
        ids: dict[tuple[int | None, int], list[int]] = {}
        for candidate in candidates:
            with self._view(candidate):
                for batch in self.batches(encoded, clips, {}):
                    rows = generate(self.speech, [encoded[i] for i in batch], self.max_new_tokens)
                    ids |= {(candidate, clip): row for clip, row in zip(batch, rows, strict=True)}
        return [Decoded(c, clip, ids[c, clip]) for clip in clips for c in candidates]

    @torch.inference_mode()
    def forced(
        self,
        encoded: Sequence[EncodedClip],
        clips: Sequence[int],
        candidates: Sequence[int | None],
        answers: Sequence[Sequence[int]],
    ) -> Iterator[tuple[int | None, list[Tensor]]]:
        """One batch, teacher-forced: per candidate, a clip's logits at its answer's positions (n, V) in float32."""
        batch = encoded_batch(self.speech, [encoded[i] for i in clips], answers)
        for candidate in candidates:
            with self._view(candidate):
                logits = SpeechLM(self.speech)(batch)
            yield candidate, list(torch.split(logits, [len(answer) for answer in answers]))

    @torch.inference_mode()
    def states(
        self, encoded: Sequence[EncodedClip], clips: Sequence[int]
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """One batch of prompts: (layer, its input, its output (B, S, H), valid (B, S)) of every layer in turn."""
        rows = [encoded[i] for i in clips]
        ids, mask = pad_left([row.ids for row in rows], self.speech.pad_id(), self.speech.device)
        given = self.speech.inputs(ids, mask, self.speech.project([row.states for row in rows]))
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            seen.append((before, out[0] if isinstance(out, tuple) else out))

        hooks = [layer.register_forward_hook(keep, with_kwargs=True) for layer in self.speech.layers("decoder")]
        try:
            self.speech.part("decoder")(**given, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        for index, (before, after) in enumerate(seen):
            yield index, before, after, mask.bool()

    def _view(self, candidate: int | None) -> AbstractContextManager[Any]:
        if candidate is None:
            return nullcontext()
        return only(self.speech, "decoder", [i for i in range(self.layers) if i != candidate])
