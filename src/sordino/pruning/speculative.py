"""Greedy translations by many candidates at once, the same as decoding with each of them alone.

A candidate is the current model without one of its decoder layers. What makes it cheap, and keeps it exact:

- A draft. The current model's own translation of a clip is known. One teacher-forced pass of prompt and draft shows a
  candidate's choice at every position: it is accepted up to the first disagreement, and only what follows is decoded
  (speculative decoding, Leviathan et al. 2023, with the model before the removal as the draft model).
- Shared prefix layers. Candidate n runs the same layers 0 to n-1 as the current model, so one pass of the current model
  keeps the input of every layer, and candidate n starts from the input of layer n, at layer n+1.
- A common start. What all prompts say before the audio is run once a round, not once a clip.
- A common pool. Rows whose draft was rejected are decoded together, whichever candidate they belong to; at layer n
  the rows of candidate n are passed by. Where a row may go on as another translation of the clip does, several tokens
  are guessed and verified in one step.

Nothing is copied: layers are the model's own modules, and what candidates do not change is taken from the shared
prefix. In float32 the tokens are those of plain decoding; in bfloat16 other batch shapes round differently, so that a
choice between two nearly equal tokens may fall the other way.

Shapes: B clips of a batch, P tokens that all prompts begin with, W width of the rest of the prompts with their drafts
(left padded), R rows of the pool, L layers of the current model, H hidden size.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.models.decoder_line import Context, open_line
from sordino.models.features import EncodedClip
from sordino.models.speech import SpeechModel
from sordino.pruning.decode_pool import Batch, DecodePool, KVCache

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
    """Bytes for batches: a quarter of the model's own, and 96 MiB where the model is small; on an accelerator, half of
    what is free there beside the model.

    Rounded down to a power of two, so that the same card gives the same batches, and with them the same last bits.
    """
    if speech.device.type in ("cpu", "meta"):  # meta: who hands out the work cannot see the workers' devices
        weights: int = sum(p.numel() * p.element_size() for p in speech.model.parameters())
        return max(SMALL_MEMORY, weights // 4)
    free: int = free_memory(speech.device) // 2
    return max(SMALL_MEMORY, 1 << max(0, free.bit_length() - 1))


def free_memory(device: torch.device) -> int:
    """Bytes that an accelerator has free, with what torch holds of it and does not use."""
    memory = torch.get_device_module(device)
    free: int = memory.mem_get_info(device)[0]
    return free + int(memory.memory_reserved(device)) - int(memory.memory_allocated(device))


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
        self.line = open_line(speech.family, speech)
        self.layers = len(self.line.layers)
        self.hidden_size: int = speech.part("decoder").config.hidden_size  # type: ignore[union-attr, assignment]
        self.stops, self.suppressed = set(speech.stop_ids()), speech.suppressed_ids()
        self.starts: dict[tuple[int, ...], PromptPrefixCache] = {}
        self.starting = threading.Lock()

    def batches(
        self, encoded: Sequence[EncodedClip], clips: Sequence[int], drafts: Mapping[int, Sequence[int]]
    ) -> list[list[int]]:
        """Clips of similar length together, as many as half the memory holds. drafts: forced on each, if any."""
        inputs = self.layers * self.hidden_size * self.speech.dtype.itemsize
        per_column = inputs + 2 * self.line.cache_bytes()  # the shared prefix's and a candidate's own
        parts: list[list[int]] = [[]]
        for width, clip in sorted((_width(encoded, drafts, clip), clip) for clip in clips):
            cost = (len(parts[-1]) + 1) * width * per_column
            if parts[-1] and cost > self.memory // 2:
                parts.append([])
            parts[-1].append(clip)
        return [batch for batch in parts if batch]

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
        rows = self.memory // 2 // (self.line.cache_bytes() * longest)
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
        shares: list[list[int]] = [[] for _ in range(count)]
        order = sorted((_width(encoded, drafts, clip), clip) for clip in clips)
        total, done = sum(width for width, _ in order), 0
        for width, clip in order:
            shares[(done + width // 2) * count // total].append(clip)
            done += width
        return [share for share in shares if share]

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
            for candidate, hidden, shared, own in self._passes(batch, starts, candidates):
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
                if pool.rows and (len(pool.rows) + len(rows)) * widest * self.line.cache_bytes() > self.memory // 2:
                    done |= self._decode(pool)
                    pool = DecodePool(self.speech, known)
                pool.add(candidate, part, rows, batch, shared, own, self.layers)
        done |= self._decode(pool)
        return [Decoded(c, clip, done[c, clip]) for clip in clips for c in candidates]

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
        for candidate, hidden, _, _ in self._passes(batch, starts, candidates):
            yield candidate, [self.line.logits(row[-len(a) :]).float() for row, a in zip(hidden, answers, strict=True)]

    @torch.inference_mode()
    def states(
        self, encoded: Sequence[EncodedClip], clips: Sequence[int]
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """One batch of prompts: (layer, its input, its output (B, S, H), valid (B, S)) of every layer in turn."""
        batch = Batch.of(self.speech, [encoded[i] for i in clips], [() for _ in clips])
        context, hidden = self._context(batch), self.line.enter(batch.embeds)
        for index in range(self.layers):
            out = self.line.run_layer(index, hidden, context, KVCache())
            yield index, hidden, out, batch.valid
            hidden = out

    def _batch(
        self, encoded: Sequence[EncodedClip], drafts: Sequence[Sequence[int]]
    ) -> tuple[Batch, PromptPrefixCache]:
        """Clips with drafts, but for what their prompts have in common before the audio; and the stores of that."""
        audio = self.speech.placeholder_id()
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
        shared = KVCache(starts.of(None))
        context, hidden = self._context(batch), self.line.enter(batch.embeds)
        inputs: list[Tensor] = []
        top = self.layers - 1
        last = top if None in candidates else min(top, max(c for c in candidates if c is not None))
        for index in range(last):
            inputs.append(hidden)
            hidden = self.line.run_layer(index, hidden, context, shared)
        inputs.append(hidden)
        for candidate in candidates:
            own = KVCache(starts.of(candidate))
            if candidate == top:
                yield candidate, inputs[top][:, -batch.tail :], shared, own
                continue
            if candidate is None:
                store, state, first = shared, hidden, top
            else:
                store, state, first = own, inputs[candidate], candidate + 1
            for index in range(first, top):
                state = self.line.run_layer(index, state, context, store)
            yield candidate, self._top(batch, state, context, store), shared, own

    def _context(self, batch: Batch) -> Context:
        return self.line.context(batch.embeds, batch.positions, batch.allowed, batch.key_positions)

    def _top(self, batch: Batch, hidden: Tensor, context: Context, store: KVCache) -> Tensor:
        """The topmost layer, in the tail alone: of the columns before it nothing is needed but keys and values."""
        top, before = self.layers - 1, batch.width - batch.tail
        earlier, tail = context.split_at(before)
        self.line.fill(top, hidden[:, :before], earlier, store)
        return self.line.run_layer(top, hidden[:, before:], tail, store)

    def _choices(self, hidden: Tensor) -> Tensor:
        """Greedy token at every position. (B, Q, H) -> (B, Q), with few logits alive at a time."""
        chosen = []
        for part in torch.split(hidden.flatten(0, 1), HEAD_ROWS):
            logits = self.line.logits(part)
            if self.suppressed:
                logits[:, self.suppressed] = -torch.inf
            chosen.append(logits.argmax(-1))
        return torch.cat(chosen).view(hidden.shape[:2])

    def _decode(self, pool: DecodePool) -> dict[tuple[int | None, int], list[int]]:
        """Decode the pool's rows to their ends, one token of every row at a time."""
        done: dict[tuple[int | None, int], list[int]] = {}
        while pool.rows:
            embeds = self.speech.model.get_input_embeddings()(pool.next_tokens(self.max_new_tokens))
            hidden = self.line.enter(embeds)  # (R, Q, H)
            context = pool.context(self.line, hidden)
            for index in range(self.layers):
                hidden = pool.run_layer(self.line, index, hidden, context)
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
        allowed = (columns[None, :] <= columns[:, None])[None, None]
        self.context = engine.line.context(hidden, columns[None], allowed, columns[None])
        hidden = engine.line.enter(hidden)
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
        for index in range(first, self.engine.layers):
            hidden = self.engine.line.run_layer(index, hidden, self.context, store)
            if candidate is None:
                self.inputs.append(hidden)
