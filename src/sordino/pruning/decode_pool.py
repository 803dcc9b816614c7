"""What speculative scoring works on: batches of prompts with drafts, KV caches, and rows that are decoded together.

Shapes as in speculative.py: B clips of a batch, P tokens that all prompts begin with, W width of the rest of the
prompts with their drafts (left padded), R rows of the pool, Q columns of one of its steps, C columns of the KV cache
(P + W and what was decoded), H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.models.decoder_line import Context, DecoderLine
from sordino.models.features import EncodedClip
from sordino.models.speech import SpeechModel, pad_left

GROW = 32  # columns by which the pool's store grows
GUESSES = 8  # tokens guessed ahead in one step of the pool


class KVCache:
    """Keys and values per layer, as the attention modules fill them.

    start: keys and values (1, heads, P, d) that every row of a batch begins with.
    column: where the pool's next ones are written; 0 in a pass over a batch, where they follow what is there.
    """

    def __init__(self, start: KVCache | None = None) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.start = start
        self.column = 0

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a transformers Cache does: take (R, heads, q, d), give back all columns so far."""
        if layer not in self.keys:
            if self.start is not None:
                rows = (keys.shape[0], -1, -1, -1)
                keys = torch.cat([self.start.keys[layer].expand(rows), keys], 2)
                values = torch.cat([self.start.values[layer].expand(rows), values], 2)
            self.keys[layer], self.values[layer] = keys, values
            return keys, values
        if self.column == 0:  # the tail behind what is there
            self.keys[layer] = torch.cat([self.keys[layer], keys], 2)
            self.values[layer] = torch.cat([self.values[layer], values], 2)
            return self.keys[layer], self.values[layer]
        end = self.column + keys.shape[2]
        if end > self.keys[layer].shape[2]:
            self.keys[layer], self.values[layer] = (
                torch.nn.functional.pad(t[layer], (0, 0, 0, GROW + keys.shape[2])) for t in (self.keys, self.values)
            )
        self.keys[layer][:, :, self.column : end] = keys
        self.values[layer][:, :, self.column : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


@dataclass(frozen=True)
class Batch:
    """Prompts without their common start, with drafts, padded on the left.

    embeds: (B, W, H); positions: (B, W); valid: (B, P + W) columns; allowed: (B, 1, W, P + W), what each may see.
    key_positions: (B, P + W), of the columns.
    tail: the last columns, which hold every row's choices: its prompt's last token and its draft.
    """

    embeds: Tensor
    positions: Tensor
    valid: Tensor
    allowed: Tensor
    key_positions: Tensor
    tail: int
    lengths: list[int]  # prompt tokens of each clip
    drafts: list[list[int]]

    @property
    def width(self) -> int:
        return self.embeds.shape[1]

    @classmethod
    def of(
        cls, speech: SpeechModel, encoded: Sequence[EncodedClip], drafts: Sequence[Sequence[int]], start: int = 0
    ) -> Batch:
        """start: P, tokens that every prompt begins with and whose keys and values are known."""
        device = speech.device
        rows = [[*h.ids[start:], *d] for h, d in zip(encoded, drafts, strict=True)]
        ids, attended = pad_left(rows, speech.pad_id(), device)
        own = attended.bool()
        columns = torch.arange(ids.shape[1], device=device)
        drafted = torch.tensor([len(d) for d in drafts], device=device)
        prompt = columns[None] < ids.shape[1] - drafted[:, None]  # a draft may hold the placeholder as a token
        embeds = speech.embed(ids, speech.project([clip.states for clip in encoded]), among=prompt)
        positions = (own.long().cumsum(-1) - 1).clamp(min=0) + start
        causal = (columns[None, :] <= columns[:, None])[None, None] & own[:, None, None, :]
        return cls(
            embeds,
            positions,
            torch.nn.functional.pad(own, (start, 0), value=True),
            torch.nn.functional.pad(causal, (start, 0), value=True),
            torch.cat([torch.arange(start, device=device).expand(len(rows), -1), positions], 1),
            max(map(len, drafts)) + 1,
            [len(h.ids) for h in encoded],
            [list(d) for d in drafts],
        )


def guess(ids: Sequence[int], texts: Sequence[Sequence[int]], most: int) -> list[int]:
    """How a translation that begins with `ids` may go on, after other translations of the same clip.

    One that begins the same is followed; else one with the same last tokens, at the place closest to where they stand
    here (prompt lookup, Saxena 2023).
    """
    n = len(ids)
    for text in texts:
        if len(text) > n and list(text[:n]) == list(ids):
            return list(text[n : n + most])
    for length in (3, 2, 1):
        if length > n:
            continue
        tail, best = list(ids[n - length :]), None
        for text in texts:
            for end in range(length, len(text)):
                if list(text[end - length : end]) == tail and (best is None or abs(end - n) < best[0]):
                    best = abs(end - n), list(text[end : end + most])
        if best:
            return best[1]
    return []


@dataclass
class Row:
    candidate: int | None
    clip: int
    ids: list[int]  # accepted and decoded so far; the last one has not been through the model yet
    position: int  # of that last one
    ahead: list[int]  # what this step guesses to follow


class DecodePool:
    """Rows of several candidates and batches being decoded together, with their keys and values.

    texts: other translations of a clip, which steps are guessed from.
    """

    def __init__(self, speech: SpeechModel, texts: Mapping[int, Sequence[Sequence[int]]]) -> None:
        self.speech, self.texts = speech, texts
        self.rows: list[Row] = []
        self.columns = 0  # P + W of the widest batch
        self.store = KVCache()
        self.parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.valid_parts: list[tuple[Tensor, Tensor]] = []  # columns and their positions
        self.valid: Tensor | None = None  # (R, columns so far)
        self.key_positions: Tensor | None = None  # (R, columns so far)
        self.step: Tensor | None = None  # (R, Q), positions of this step

    def add(
        self,
        candidate: int | None,
        clips: Sequence[int],
        rows: Sequence[tuple[int, int, int]],
        batch: Batch,
        shared: KVCache,
        own: KVCache,
        layers: int,
    ) -> None:
        """Take over (row, accepted tokens, next token) of a candidate.

        clips: of the batch's rows; shared, own: keys and values of the layers below the candidate's, and above it.
        """
        if not rows:
            return
        device = self.speech.device
        index = torch.tensor([row for row, _, _ in rows], device=device)
        for row, n, token in rows:
            self.rows.append(Row(candidate, clips[row], [*batch.drafts[row][:n], token], batch.lengths[row] + n, []))
        rejected = torch.tensor([len(batch.drafts[row]) - n for row, n, _ in rows], device=device)
        total = batch.valid.shape[1]
        self.columns = max(self.columns, total)
        columns = torch.arange(total, device=device)
        valid = batch.valid[index] & (columns[None] < total - rejected[:, None])
        self.valid_parts.append((valid, batch.key_positions[index]))
        for layer in range(layers):
            if layer == candidate:
                continue
            source = shared if candidate is None or layer < candidate else own
            part = (source.keys[layer][index], source.values[layer][index])
            self.parts.setdefault(layer, []).append(part)

    def _settle(self) -> None:
        """Join what `add` collected, padded on the left to the widest."""

        def joined(parts: Iterable[Tensor], dim: int) -> Tensor:
            behind = (0, 0) * (-dim - 1)
            pads = [(p, (*behind, self.columns - p.shape[dim], 0)) for p in parts]
            return torch.cat([torch.nn.functional.pad(p, pad) if pad[-2] else p for p, pad in pads])

        if self.valid_parts:
            self.valid = joined((valid for valid, _ in self.valid_parts), -1)
            self.key_positions = joined((positions for _, positions in self.valid_parts), -1)
            for layer in list(self.parts):  # one layer at a time, so that not everything is held twice
                parts = self.parts.pop(layer)
                self.store.keys[layer] = joined((k for k, _ in parts), -2)
                self.store.values[layer] = joined((v for _, v in parts), -2)
            self.valid_parts = []
            self.store.column = self.columns

    def next_tokens(self, limit: int) -> Tensor:
        """(R, Q): each row's last token and what is guessed to follow it; limit: tokens of a translation."""
        self._settle()
        for row in self.rows:
            row.ahead = guess(row.ids, self.texts.get(row.clip, ()), min(GUESSES, limit - len(row.ids)))
        width = max(len(row.ahead) for row in self.rows)
        rows = [[row.ids[-1], *row.ahead, *[0] * (width - len(row.ahead))] for row in self.rows]
        return torch.tensor(rows, device=self.speech.device)

    def context(self, line: DecoderLine, hidden: Tensor) -> Context:
        """Of one step (R, Q, H): valid columns, and those that this step writes up to each one's own."""
        assert self.valid is not None and self.key_positions is not None
        width, device = hidden.shape[1], hidden.device
        first = torch.tensor([[row.position] for row in self.rows], device=device)
        self.step = first + torch.arange(width, device=device)
        before = self.valid[:, None, None, :].expand(-1, 1, width, -1)
        own = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(len(self.rows), 1, -1, -1)
        return line.context(
            hidden, self.step, torch.cat([before, own], -1), torch.cat([self.key_positions, self.step], 1)
        )

    def run_layer(self, line: DecoderLine, index: int, hidden: Tensor, context: Context) -> Tensor:
        """One layer for every row but those of the candidate that leaves it out."""
        member = [i for i, row in enumerate(self.rows) if row.candidate != index]
        if len(member) == len(self.rows):
            return line.run_layer(index, hidden, context, self.store)
        if not member:
            return hidden
        at = torch.tensor(member, device=hidden.device)
        part = line.run_layer(index, hidden[at], context.rows(at), self.store)
        return hidden.index_copy(0, at, part)

    def advance(
        self, chosen: Sequence[Sequence[int]], stops: set[int], limit: int
    ) -> dict[tuple[int | None, int], list[int]]:
        """Take each row's choices (R, Q) as far as its guesses were right, and the one behind them.

        Rows that end are returned and leave the pool.
        """
        done: dict[tuple[int | None, int], list[int]] = {}
        stay, kept = [], []
        for i, (row, choices) in enumerate(zip(self.rows, chosen, strict=True)):
            right = next((t for t, token in enumerate(row.ahead) if choices[t] != token), len(row.ahead))
            row.ids += row.ahead[:right]
            row.position += right + 1
            if choices[right] in stops or len(row.ids) == limit:
                done[row.candidate, row.clip] = row.ids
                continue
            row.ids.append(choices[right])
            if len(row.ids) == limit:
                done[row.candidate, row.clip] = row.ids
                continue
            stay.append(i)
            kept.append(right + 1)
        if len(stay) < len(self.rows):
            self._keep(stay)
        if stay:  # columns behind the farthest row are written again
            assert self.valid is not None and self.key_positions is not None and self.step is not None
            columns = torch.arange(max(kept), device=self.valid.device)
            now = columns[None] < torch.tensor(kept, device=self.valid.device)[:, None]
            self.valid = torch.cat([self.valid, now], 1)
            self.key_positions = torch.cat([self.key_positions, self.step[:, : max(kept)]], 1)
            self.store.column += max(kept)
        return done

    def _keep(self, stay: Sequence[int]) -> None:
        """Drop the rows that ended from the store as well."""
        before = self.rows
        self.rows = [before[i] for i in stay]
        if not self.rows:
            return
        assert self.valid is not None and self.key_positions is not None and self.step is not None
        staying, rows = set(stay), torch.tensor(list(stay), device=self.valid.device)
        self.valid, self.key_positions, self.step = self.valid[rows], self.key_positions[rows], self.step[rows]
        for layer in list(self.store.keys):
            members = [i for i, row in enumerate(before) if row.candidate != layer]
            at = [j for j, i in enumerate(members) if i in staying]
            if not at:
                del self.store.keys[layer], self.store.values[layer]
                continue
            index = torch.tensor(at, device=self.valid.device)
            self.store.keys[layer] = self.store.keys[layer][index]
            self.store.values[layer] = self.store.values[layer][index]
