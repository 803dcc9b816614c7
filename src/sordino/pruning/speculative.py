"""Greedy translations by many candidates at once, the same as decoding with each of them alone.

A candidate is the current model without one of its decoder layers. What makes it cheap, and keeps it exact:

- A draft. The current model's own translation of a clip is known. One teacher-forced pass of prompt and draft shows a
  candidate's choice at every position: it is accepted up to the first disagreement, and only what follows is decoded
  (speculative decoding, Leviathan et al. 2023, with the model before the removal as the draft model).
- A shared trunk. Candidate n runs the same layers 0 to n-1 as the current model, so one pass of the current model
  keeps the input of every layer, and candidate n starts from the input of layer n, at layer n+1.
- A common start. What all prompts say before the audio is run once a round, not once a clip.
- A common pool. Rows whose draft was rejected are decoded together, whichever candidate they belong to; at layer n
  the rows of candidate n are passed by. Where a row may go on as another translation of the clip does, several tokens
  are guessed and verified in one step.

Nothing is copied: layers are the model's own modules, and what candidates do not change is taken from the trunk. In
float32 the tokens are those of plain decoding; in bfloat16 other batch shapes round differently, so that a choice
between two nearly equal tokens may fall the other way.

Shapes: B clips of a batch, P tokens that all prompts begin with, W width of the rest of the prompts with their drafts
(left padded), R rows of the pool, L layers of the current model, H hidden size.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.models.base import SpeechModel
from sordino.models.features import EncodedClip
from sordino.pruning.decode_pool import Batch, DecodePool, KVCache, additive

REJECTED = 0.25  # share of drafts that are expected to need decoding: how many clips share a pool
HEAD_ROWS = 256  # positions whose logits are held at once: (256, 156,032) in bfloat16 is 80 MB
SMALL_MEMORY = 96 * 2**20  # bytes for batches where a quarter of the model would be less


@dataclass(frozen=True)
class Decoded:
    """candidate: position of the layer left out, or None for the whole current model; clip: index; ids: greedy."""

    candidate: int | None
    clip: int
    ids: list[int]


def default_memory(speech: SpeechModel) -> int:
    """A quarter of the model's own bytes for batches, and 96 MiB where the model is small."""
    weights: int = sum(p.numel() * p.element_size() for p in speech.model.parameters())
    return max(SMALL_MEMORY, weights // 4)


def _width(encoded: Sequence[EncodedClip], drafts: Mapping[int, Sequence[int]], clip: int) -> int:
    """Columns of a prompt with its draft."""
    return len(encoded[clip].ids) + len(drafts.get(clip, ()))


class SpeculativeDecoder:
    """Runs the current decoder (as the model is now) and the same without single layers over clips.

    memory: bytes that activations, keys and values may take at once; it decides how many clips share a batch and how
    many rows the pool holds, and with that only the speed.
    """

    def __init__(self, speech: SpeechModel, max_new_tokens: int, memory: int) -> None:
        self.speech, self.max_new_tokens, self.memory = speech, max_new_tokens, memory
        self.decoder: Any = speech.part("decoder")
        self.layers = list(speech.layers("decoder"))
        self.stops = set(speech.stop_ids())
        self.starts: dict[tuple[int, ...], PromptPrefixCache] = {}
        self.starting = threading.Lock()

    def batches(
        self, encoded: Sequence[EncodedClip], clips: Sequence[int], drafts: Mapping[int, Sequence[int]]
    ) -> list[list[int]]:
        """Clips of similar length together, as many as half the memory holds. drafts: forced on each, if any."""
        inputs = len(self.layers) * self.decoder.config.hidden_size * self.speech.dtype.itemsize
        per_column = inputs + 2 * self._column_bytes()  # the trunk's and a candidate's own
        found: list[list[int]] = [[]]
        for width, clip in sorted((_width(encoded, drafts, clip), clip) for clip in clips):
            cost = (len(found[-1]) + 1) * width * per_column
            if found[-1] and cost > self.memory // 2:
                found.append([])
            found[-1].append(clip)
        return [batch for batch in found if batch]

    def groups(
        self,
        encoded: Sequence[EncodedClip],
        clips: Sequence[int],
        drafts: Mapping[int, Sequence[int]],
        candidates: int,
        workers: int,
    ) -> list[list[int]]:
        """Clips for one call of `translate` each: as many as fill a pool, and of equal cost for the workers."""
        longest = max(_width(encoded, drafts, clip) for clip in clips) + self.max_new_tokens
        rows = self.memory // 2 // (self._column_bytes() * longest)
        most = max(1, int(rows / (candidates * REJECTED)))  # clips
        return self._shares(encoded, clips, drafts, -(-len(clips) // most), workers)

    def spread(
        self, encoded: Sequence[EncodedClip], clips: Sequence[int], drafts: Mapping[int, Sequence[int]], workers: int
    ) -> list[list[int]]:
        """As `batches`, of equal cost for the workers."""
        shares = self._shares(encoded, clips, drafts, len(self.batches(encoded, clips, drafts)), workers)
        return [batch for share in shares for batch in self.batches(encoded, share, drafts)]

    def _shares(
        self,
        encoded: Sequence[EncodedClip],
        clips: Sequence[int],
        drafts: Mapping[int, Sequence[int]],
        least: int,
        workers: int,
    ) -> list[list[int]]:
        """The clips by length, cut into `least` shares of equal width or as many more as the workers have in common."""
        count = -(-least // workers) * workers
        found: list[list[int]] = [[] for _ in range(count)]
        order = sorted((_width(encoded, drafts, clip), clip) for clip in clips)
        total, done = sum(width for width, _ in order), 0
        for width, clip in order:
            found[(done + width // 2) * count // total].append(clip)
            done += width
        return [share for share in found if share]

    @torch.inference_mode()
    def translate(
        self,
        encoded: Sequence[EncodedClip],
        clips: Sequence[int],
        candidates: Sequence[int | None],
        known: Mapping[int, Sequence[Sequence[int]]],
    ) -> list[Decoded]:
        """Greedy ids of every clip by every candidate, in the order given.

        known: translations of a clip that may be right; the first is its draft, the others serve where that was wrong.
        """
        done: dict[tuple[int | None, int], list[int]] = {}
        drafts = {i: texts[0] for i in clips if (texts := known.get(i))}
        pool = DecodePool(self.speech, known)
        for part in self.batches(encoded, clips, drafts):
            batch, starts = self._batch([encoded[i] for i in part], [drafts.get(i, ()) for i in part])
            columns = batch.valid.shape[1] + self.max_new_tokens
            for candidate, hidden, trunk, own in self._passes(batch, starts, candidates):
                rows = []
                choices = self._choices(hidden)  # (B, tail)
                for row, (draft, all_choices) in enumerate(zip(batch.drafts, choices.tolist(), strict=True)):
                    choice = all_choices[batch.tail - 1 - len(draft) :]
                    agreed = next((t for t, token in enumerate(draft) if choice[t] != token), len(draft))
                    ids = list(draft[:agreed])
                    if agreed == self.max_new_tokens or choice[agreed] in self.stops:
                        done[candidate, part[row]] = ids
                    elif agreed + 1 == self.max_new_tokens:
                        done[candidate, part[row]] = [*ids, choice[agreed]]
                    else:
                        rows.append((row, agreed, choice[agreed]))
                widest = max(columns, pool.columns + self.max_new_tokens)
                if pool.rows and (len(pool.rows) + len(rows)) * widest * self._column_bytes() > self.memory // 2:
                    done |= self._decode(pool)
                    pool = DecodePool(self.speech, known)
                pool.add(candidate, part, rows, batch, trunk, own, len(self.layers))
        done |= self._decode(pool)
        return [Decoded(c, clip, done[c, clip]) for clip in clips for c in candidates]

    def _column_bytes(self) -> int:
        """Bytes of one column's keys and values in all layers."""
        config = self.decoder.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(len(self.layers) * 2 * config.num_key_value_heads * head * self.speech.dtype.itemsize)

    @torch.inference_mode()
    def forced(
        self,
        encoded: Sequence[EncodedClip],
        clips: Sequence[int],
        candidates: Sequence[int | None],
        answers: Sequence[Sequence[int]],
    ) -> Iterator[tuple[int | None, list[Tensor]]]:
        """One batch, teacher-forced: per candidate, a clip's logits at its answer's positions (n, V) in float32."""
        batch, starts = self._batch([encoded[i] for i in clips], [answer[:-1] for answer in answers])
        head = self.speech.model.get_output_embeddings()
        for candidate, hidden, _, _ in self._passes(batch, starts, candidates):
            normed = self.decoder.norm(hidden)
            yield candidate, [head(row[-len(a) :]).float() for row, a in zip(normed, answers, strict=True)]

    @torch.inference_mode()
    def states(
        self, encoded: Sequence[EncodedClip], clips: Sequence[int]
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """One batch of prompts: (layer, its input, its output (B, S, H), valid (B, S)) of every layer in turn."""
        batch = Batch.of(self.speech, [encoded[i] for i in clips], [() for _ in clips])
        cos_sin = self.decoder.rotary_emb(batch.embeds, batch.positions)
        hidden = batch.embeds
        for index, layer in enumerate(self.layers):
            out = self.layer(layer, hidden, batch.mask, batch.positions, cos_sin, KVCache())
            yield index, hidden, out, batch.valid
            hidden = out

    def _batch(
        self, encoded: Sequence[EncodedClip], drafts: Sequence[Sequence[int]]
    ) -> tuple[Batch, PromptPrefixCache]:
        """Clips with drafts, but for what their prompts have in common before the audio; and the stores of that."""
        audio = self.speech.family.audio_token(self.speech.model.config)
        first, last = min(h.ids for h in encoded), max(h.ids for h in encoded)  # between them lie all others
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
        common = tuple(first[: min(same, len(first) - 1)])  # every prompt keeps a token of its own
        start = common[: common.index(audio)] if audio in common else common
        with self.starting:
            if start not in self.starts:
                self.starts[start] = PromptPrefixCache(self, start)
        return Batch.of(self.speech, encoded, drafts, len(start)), self.starts[start]

    def _passes(
        self, batch: Batch, starts: PromptPrefixCache, candidates: Sequence[int | None]
    ) -> Iterator[tuple[int | None, Tensor, KVCache, KVCache]]:
        """Each candidate's last hidden states in the batch's tail (B, tail, H), and both stores."""
        trunk = KVCache(starts.of(None))
        cos_sin = self.decoder.rotary_emb(batch.embeds, batch.positions)
        inputs: list[Tensor] = []
        hidden = batch.embeds
        top = len(self.layers) - 1
        last = top if None in candidates else min(top, max(c for c in candidates if c is not None))
        for layer in self.layers[:last]:
            inputs.append(hidden)
            hidden = self.layer(layer, hidden, batch.mask, batch.positions, cos_sin, trunk)
        inputs.append(hidden)
        for candidate in candidates:
            own = KVCache(starts.of(candidate))
            if candidate == top:
                yield candidate, inputs[top][:, -batch.tail :], trunk, own
                continue
            if candidate is None:
                store, state, first = trunk, hidden, top
            else:
                store, state, first = own, inputs[candidate], candidate + 1
            for layer in self.layers[first:top]:
                state = self.layer(layer, state, batch.mask, batch.positions, cos_sin, store)
            yield candidate, self._top(batch, state, cos_sin, store), trunk, own

    def _top(self, batch: Batch, hidden: Tensor, cos_sin: tuple[Tensor, Tensor], store: KVCache) -> Tensor:
        """The topmost layer, in the tail alone: of the columns before it nothing is needed but keys and values."""
        layer, before = self.layers[-1], batch.width - batch.tail
        cos, sin = cos_sin
        keys, values = self.speech.family.keys_values(layer, hidden[:, :before], (cos[:, :before], sin[:, :before]))
        store.update(keys, values, len(self.layers) - 1)
        tail = (cos[:, before:], sin[:, before:])
        mask, positions = batch.mask[:, :, before:], batch.positions[:, before:]
        return self.layer(layer, hidden[:, before:], mask, positions, tail, store)

    def layer(
        self,
        layer: Any,
        hidden: Tensor,
        mask: Tensor,
        positions: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        store: KVCache,
    ) -> Tensor:
        out: Tensor = layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=store,
            use_cache=True,
            position_embeddings=cos_sin,
        )
        return out

    def _choices(self, hidden: Tensor) -> Tensor:
        """Greedy token at every position. (B, Q, H) -> (B, Q), with few logits alive at a time."""
        head = self.speech.model.get_output_embeddings()
        flat = self.decoder.norm(hidden).flatten(0, 1)
        return torch.cat([head(part).argmax(-1) for part in flat.split(HEAD_ROWS)]).view(hidden.shape[:2])

    def _decode(self, pool: DecodePool) -> dict[tuple[int | None, int], list[int]]:
        """Decode the pool's rows to their ends, one token of every row at a time."""
        done: dict[tuple[int | None, int], list[int]] = {}
        while pool.rows:
            hidden = self.speech.model.get_input_embeddings()(pool.next_tokens(self.max_new_tokens))  # (R, Q, H)
            width = hidden.shape[1]
            positions = pool.positions(width)
            cos_sin = self.decoder.rotary_emb(hidden, positions)
            mask = pool.step_mask(width, hidden.dtype)
            for index, layer in enumerate(self.layers):
                hidden = pool.run_layer(index, layer, hidden, mask, positions, cos_sin, self.layer)
            done |= pool.advance(self._choices(hidden).tolist(), self.stops, self.max_new_tokens)
        return done


class PromptPrefixCache:
    """Keys and values of the tokens that all prompts begin with, by the current model and by every candidate."""

    def __init__(self, engine: SpeculativeDecoder, ids: Sequence[int]) -> None:
        self.engine, self.count = engine, len(ids)
        self.stores: dict[int | None, KVCache | None] = {}
        if not ids:
            return
        device = engine.speech.device
        hidden = engine.speech.model.get_input_embeddings()(torch.tensor([list(ids)], device=device))  # (1, P, H)
        columns = torch.arange(self.count, device=device)
        self.mask = additive((columns[None, :] <= columns[:, None])[None, None], hidden.dtype)
        self.positions = columns[None]
        self.cos_sin = engine.decoder.rotary_emb(hidden, self.positions)
        self.inputs = [hidden]
        self._run(None, hidden, 0)

    def of(self, candidate: int | None) -> KVCache | None:
        """The store of one candidate (of the layers above its own), or None where prompts have no common start."""
        if self.count == 0:
            return None
        with self.engine.starting:
            if candidate not in self.stores:
                assert candidate is not None
                self._run(candidate, self.inputs[candidate], candidate + 1)
            return self.stores[candidate]

    def _run(self, candidate: int | None, hidden: Tensor, first: int) -> None:
        store = self.stores[candidate] = KVCache()
        for layer in self.engine.layers[first:]:
            hidden = self.engine.layer(layer, hidden, self.mask, self.positions, self.cos_sin, store)
            if candidate is None:
                self.inputs.append(hidden)
