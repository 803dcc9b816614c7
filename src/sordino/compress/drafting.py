"""Greedy translations by many candidates at once, the same as decoding with each of them alone.

A candidate is the current model without one of its decoder layers. What makes it cheap, and keeps it exact:

- A draft. The current model's own translation of a clip is known. One teacher-forced pass of prompt and draft shows a
  candidate's choice at every position: it is accepted up to the first disagreement, and only what follows is decoded
  (speculative decoding, Leviathan et al. 2023, with the model before the removal as the draft model).
- A shared trunk. Candidate n runs the same layers 0 to n-1 as the current model, so one pass of the current model
  keeps the input of every layer, and candidate n starts from the input of layer n, at layer n+1.
- A common pool. Rows whose draft was rejected are decoded together, whichever candidate they belong to; at layer n
  the rows of candidate n are passed by.

Nothing is copied: layers are the model's own modules, and what candidates do not change is taken from the trunk. In
float32 the tokens are those of plain decoding; in bfloat16 other batch shapes round differently, so that a choice
between two nearly equal tokens may fall the other way.

Shapes: B clips of a batch, W width of prompts with drafts (left padded), R rows of the pool, C columns of the key-value
store, L layers of the current model, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.families.base import SpeechModel, pad_left
from sordino.features import Heard

HEAD_ROWS = 256  # positions whose logits are held at once: (256, 156,032) in bfloat16 is 80 MB
GROW = 32  # columns by which the pool's store grows


@dataclass(frozen=True)
class Found:
    """candidate: position of the layer left out, or None for the whole current model; clip: index; ids: greedy."""

    candidate: int | None
    clip: int
    ids: list[int]


class Store:
    """Keys and values per layer, as the attention modules fill them.

    column: where the pool's next ones are written; 0 in a pass over a batch, where they follow what is there.
    """

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.column = 0

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a transformers Cache does: take (R, heads, q, d), give back all columns so far."""
        if layer not in self.keys:
            self.keys[layer], self.values[layer] = keys, values
            return keys, values
        if self.column == 0:  # the tail behind what is there
            self.keys[layer] = torch.cat([self.keys[layer], keys], 2)
            self.values[layer] = torch.cat([self.values[layer], values], 2)
            return self.keys[layer], self.values[layer]
        end = self.column + keys.shape[2]
        if end > self.keys[layer].shape[2]:
            self.keys[layer], self.values[layer] = (
                torch.nn.functional.pad(t[layer], (0, 0, 0, GROW)) for t in (self.keys, self.values)
            )
        self.keys[layer][:, :, self.column : end] = keys
        self.values[layer][:, :, self.column : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class Drafting:
    """Runs the current decoder (as the model is now) and the same without single layers over clips.

    memory: bytes that activations, keys and values may take at once; it decides how many clips share a batch and how
    many rows the pool holds, and with that only the speed.
    """

    def __init__(self, speech: SpeechModel, max_new_tokens: int, memory: int) -> None:
        self.speech, self.max_new_tokens, self.memory = speech, max_new_tokens, memory
        self.decoder: Any = speech.part("decoder")
        self.layers = list(speech.layers("decoder"))
        self.stops = set(speech.stop_ids())

    def batches(self, heard: Sequence[Heard], clips: Sequence[int], longest: int) -> list[list[int]]:
        """Clips of similar length together, as many as half the memory holds. longest: draft tokens expected."""
        config = self.decoder.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_column = len(self.layers) * (config.hidden_size + 4 * config.num_key_value_heads * head)
        order = sorted(clips, key=lambda i: (len(heard[i].ids), i))
        found: list[list[int]] = [[]]
        for clip in order:
            width = len(heard[clip].ids) + longest  # the longest so far, since they come in order
            cost = (len(found[-1]) + 1) * width * per_column * self.speech.dtype.itemsize
            if found[-1] and cost > self.memory // 2:
                found.append([])
            found[-1].append(clip)
        return [batch for batch in found if batch]

    @torch.inference_mode()
    def translate(
        self,
        heard: Sequence[Heard],
        clips: Sequence[int],
        candidates: Sequence[int | None],
        drafts: Mapping[int, Sequence[int]],
    ) -> list[Found]:
        """One batch: greedy ids of every clip by every candidate, in the order given."""
        done: dict[tuple[int | None, int], list[int]] = {}
        batch = _Batch.of(self.speech, [heard[i] for i in clips], [drafts.get(i, ()) for i in clips])
        pool = _Pool(self.speech, batch.width)
        room = (
            self.memory // 2 // pool.row_bytes(self.decoder.config, len(self.layers), batch.width + self.max_new_tokens)
        )
        for candidate, hidden, trunk, own in self._passes(batch, candidates):
            rows = []
            choices = self._choices(hidden)  # (B, tail)
            for row, (draft, all_choices) in enumerate(zip(batch.drafts, choices.tolist(), strict=True)):
                choice = all_choices[batch.tail - 1 - len(draft) :]
                agreed = next((t for t, token in enumerate(draft) if choice[t] != token), len(draft))
                ids = list(draft[:agreed])
                if agreed == self.max_new_tokens or choice[agreed] in self.stops:
                    done[candidate, row] = ids
                else:
                    rows.append((row, agreed, choice[agreed]))
            if pool.rows and len(pool.rows) + len(rows) > room:
                done |= self._decode(pool)
                pool = _Pool(self.speech, batch.width)
            pool.add(candidate, rows, batch, trunk, own, len(self.layers))
        done |= self._decode(pool)
        return [Found(c, clip, done[c, row]) for row, clip in enumerate(clips) for c in candidates]

    @torch.inference_mode()
    def forced(
        self,
        heard: Sequence[Heard],
        clips: Sequence[int],
        candidates: Sequence[int | None],
        answers: Sequence[Sequence[int]],
    ) -> Iterator[tuple[int | None, list[Tensor]]]:
        """One batch, teacher-forced: per candidate, a clip's logits at its answer's positions (n, V) in float32."""
        batch = _Batch.of(self.speech, [heard[i] for i in clips], [answer[:-1] for answer in answers])
        head = self.speech.model.get_output_embeddings()
        for candidate, hidden, _, _ in self._passes(batch, candidates):
            normed = self.decoder.norm(hidden)
            yield candidate, [head(row[-len(a) :]).float() for row, a in zip(normed, answers, strict=True)]

    @torch.inference_mode()
    def states(self, heard: Sequence[Heard], clips: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """One batch of prompts: (layer, its input, its output (B, S, H), valid (B, S)) of every layer in turn."""
        batch = _Batch.of(self.speech, [heard[i] for i in clips], [() for _ in clips])
        cos_sin = self.decoder.rotary_emb(batch.embeds, batch.positions)
        hidden = batch.embeds
        for index, layer in enumerate(self.layers):
            out = self._layer(layer, hidden, batch.mask, batch.positions, cos_sin, Store())
            yield index, hidden, out, batch.valid
            hidden = out

    def _passes(
        self, batch: _Batch, candidates: Sequence[int | None]
    ) -> Iterator[tuple[int | None, Tensor, Store, Store]]:
        """Each candidate's last hidden states in the batch's tail (B, tail, H), and both stores."""
        trunk = Store()
        cos_sin = self.decoder.rotary_emb(batch.embeds, batch.positions)
        inputs: list[Tensor] = []
        hidden = batch.embeds
        top = len(self.layers) - 1
        last = top if None in candidates else min(top, max(c for c in candidates if c is not None))
        for layer in self.layers[:last]:
            inputs.append(hidden)
            hidden = self._layer(layer, hidden, batch.mask, batch.positions, cos_sin, trunk)
        inputs.append(hidden)
        for candidate in candidates:
            own = Store()
            if candidate == top:
                yield candidate, inputs[top][:, -batch.tail :], trunk, own
                continue
            if candidate is None:
                store, state, first = trunk, hidden, top
            else:
                store, state, first = own, inputs[candidate], candidate + 1
            for layer in self.layers[first:top]:
                state = self._layer(layer, state, batch.mask, batch.positions, cos_sin, store)
            yield candidate, self._top(batch, state, cos_sin, store), trunk, own

    def _top(self, batch: _Batch, hidden: Tensor, cos_sin: tuple[Tensor, Tensor], store: Store) -> Tensor:
        """The topmost layer, in the tail alone: of the columns before it nothing is needed but keys and values."""
        layer, before = self.layers[-1], batch.width - batch.tail
        cos, sin = cos_sin
        keys, values = self.speech.family.keys_values(layer, hidden[:, :before], (cos[:, :before], sin[:, :before]))
        store.update(keys, values, len(self.layers) - 1)
        tail = (cos[:, before:], sin[:, before:])
        mask, positions = batch.mask[:, :, before:], batch.positions[:, before:]
        return self._layer(layer, hidden[:, before:], mask, positions, tail, store)

    def _layer(
        self, layer: Any, hidden: Tensor, mask: Tensor, positions: Tensor, cos_sin: tuple[Tensor, Tensor], store: Store
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

    def _decode(self, pool: _Pool) -> dict[tuple[int | None, int], list[int]]:
        """Decode the pool's rows to their ends, one token of every row at a time."""
        done: dict[tuple[int | None, int], list[int]] = {}
        while pool.rows:
            hidden = self.speech.model.get_input_embeddings()(pool.next_tokens())  # (R, 1, H)
            positions = pool.positions()
            cos_sin = self.decoder.rotary_emb(hidden, positions)
            mask = pool.step_mask(hidden.dtype)
            for index, layer in enumerate(self.layers):
                hidden = pool.through(index, layer, hidden, mask, positions, cos_sin, self._layer)
            chosen = self._choices(hidden)[:, 0].tolist()
            done |= pool.advance(chosen, self.stops, self.max_new_tokens)
        return done


@dataclass(frozen=True)
class _Batch:
    """Prompts with drafts, padded on the left. embeds: (B, W, H); positions, valid: (B, W); mask: (B, 1, W, W).

    tail: the last columns, which hold every row's choices: its prompt's last token and its draft.
    """

    embeds: Tensor
    positions: Tensor
    valid: Tensor
    mask: Tensor
    tail: int
    lengths: list[int]  # prompt tokens of each clip
    drafts: list[list[int]]

    @property
    def width(self) -> int:
        return self.embeds.shape[1]

    @classmethod
    def of(cls, speech: SpeechModel, heard: Sequence[Heard], drafts: Sequence[Sequence[int]]) -> _Batch:
        device = speech.device
        ids, attended = pad_left([[*h.ids, *d] for h, d in zip(heard, drafts, strict=True)], speech.pad_id(), device)
        valid = attended.bool()
        columns = torch.arange(ids.shape[1], device=device)
        drafted = torch.tensor([len(d) for d in drafts], device=device)
        tower = torch.cat([h.tower for h in heard]).to(device, speech.dtype)
        prompt = columns[None] < ids.shape[1] - drafted[:, None]  # a draft may hold the placeholder as a token
        embeds = speech.embed(ids, speech.family.project(speech.model, tower), among=prompt)
        positions = (valid.long().cumsum(-1) - 1).clamp(min=0)
        allowed = (columns[None, :] <= columns[:, None])[None, None] & valid[:, None, None, :]
        return cls(
            embeds,
            positions,
            valid,
            additive(allowed, embeds.dtype),
            max(map(len, drafts)) + 1,
            [len(h.ids) for h in heard],
            [list(d) for d in drafts],
        )


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean mask -> 0 where allowed, the type's lowest number elsewhere (what eager and sdpa both take)."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


@dataclass
class _Row:
    candidate: int | None
    row: int  # in the batch
    ids: list[int]  # accepted and decoded so far; the last one has not been through the model yet
    position: int  # of that last one


class _Pool:
    """Rows of several candidates being decoded together, with their keys and values."""

    def __init__(self, speech: SpeechModel, width: int) -> None:
        self.speech = speech
        self.rows: list[_Row] = []
        self.store = Store()
        self.store.column = width
        self.parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.valid_parts: list[Tensor] = []
        self.valid: Tensor | None = None  # (R, columns so far)

    def row_bytes(self, config: Any, layers: int, width: int) -> int:
        """Bytes of one row's keys and values."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(layers * width * 2 * config.num_key_value_heads * head * self.speech.dtype.itemsize)

    def add(
        self,
        candidate: int | None,
        rows: Sequence[tuple[int, int, int]],
        batch: _Batch,
        trunk: Store,
        own: Store,
        layers: int,
    ) -> None:
        """Take over (row, accepted tokens, next token) of a candidate; keys and values come from trunk and own."""
        if not rows:
            return
        device = self.speech.device
        index = torch.tensor([row for row, _, _ in rows], device=device)
        for row, n, token in rows:
            self.rows.append(_Row(candidate, row, [*batch.drafts[row][:n], token], batch.lengths[row] + n))
        rejected = torch.tensor([len(batch.drafts[row]) - n for row, n, _ in rows], device=device)
        columns = torch.arange(batch.width, device=device)
        self.valid_parts.append(batch.valid[index] & (columns[None] < batch.width - rejected[:, None]))
        for layer in range(layers):
            if layer == candidate:
                continue
            source = trunk if candidate is None or layer < candidate else own
            part = (source.keys[layer][index], source.values[layer][index])
            self.parts.setdefault(layer, []).append(part)

    def _settle(self) -> None:
        """Join what `add` collected."""
        if self.valid_parts:
            self.valid = torch.cat(self.valid_parts)
            for layer in list(self.parts):  # one layer at a time, so that not everything is held twice
                parts = self.parts.pop(layer)
                self.store.keys[layer] = torch.cat([k for k, _ in parts])
                self.store.values[layer] = torch.cat([v for _, v in parts])
            self.valid_parts = []

    def next_tokens(self) -> Tensor:
        self._settle()
        return torch.tensor([[row.ids[-1]] for row in self.rows], device=self.speech.device)

    def positions(self) -> Tensor:
        return torch.tensor([[row.position] for row in self.rows], device=self.speech.device)

    def step_mask(self, dtype: torch.dtype) -> Tensor:
        """(R, 1, 1, C): valid columns and the one that this step writes."""
        assert self.valid is not None
        self.valid = torch.nn.functional.pad(self.valid, (0, 1), value=True)
        return additive(self.valid[:, None, None, :], dtype)

    def through(  # type: ignore[no-untyped-def]
        self, index: int, layer: Any, hidden: Tensor, mask: Tensor, positions: Tensor, cos_sin, run
    ) -> Tensor:
        """One layer for every row but those of the candidate that leaves it out."""
        member = [i for i, row in enumerate(self.rows) if row.candidate != index]
        if len(member) == len(self.rows):
            out: Tensor = run(layer, hidden, mask, positions, cos_sin, self.store)
            return out
        if not member:
            return hidden
        at = torch.tensor(member, device=hidden.device)
        part = run(layer, hidden[at], mask[at], positions[at], tuple(t[at] for t in cos_sin), self.store)
        return hidden.index_copy(0, at, part)

    def advance(self, chosen: Sequence[int], stops: set[int], limit: int) -> dict[tuple[int | None, int], list[int]]:
        """Append each row's choice; rows that end are returned and leave the pool."""
        self.store.column += 1
        done: dict[tuple[int | None, int], list[int]] = {}
        stay = []
        for i, (row, token) in enumerate(zip(self.rows, chosen, strict=True)):
            if len(row.ids) >= limit or token in stops:
                done[row.candidate, row.row] = row.ids[:limit]
            else:
                row.ids.append(token)
                row.position += 1
                stay.append(i)
        if len(stay) < len(self.rows):
            self._keep(stay)
        return done

    def _keep(self, stay: Sequence[int]) -> None:
        """Drop the rows that ended from the store as well."""
        before = self.rows
        self.rows = [before[i] for i in stay]
        if not self.rows:
            return
        assert self.valid is not None
        staying = set(stay)
        self.valid = self.valid[torch.tensor(list(stay), device=self.valid.device)]
        for layer in list(self.store.keys):
            members = [i for i, row in enumerate(before) if row.candidate != layer]
            at = [j for j, i in enumerate(members) if i in staying]
            if not at:
                del self.store.keys[layer], self.store.values[layer]
                continue
            index = torch.tensor(at, device=self.valid.device)
            self.store.keys[layer] = self.store.keys[layer][index]
            self.store.values[layer] = self.store.values[layer][index]
