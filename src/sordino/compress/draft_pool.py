"""What drafting works on: batches of prompts with drafts, key-value stores, and the pool of rows that are decoded on.

Shapes as in drafting.py: B clips of a batch, W width of prompts with drafts (left padded), R rows of the pool,
C columns of the key-value store, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.families.base import SpeechModel, pad_left
from sordino.features import Heard

GROW = 32  # columns by which the pool's store grows

CosSin = tuple[Tensor, Tensor]
# layer, hidden, mask, positions, rotary embedding, store -> hidden
RunLayer = Callable[[Any, Tensor, Tensor, Tensor, CosSin, "Store"], Tensor]


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


@dataclass(frozen=True)
class Batch:
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
    def of(cls, speech: SpeechModel, heard: Sequence[Heard], drafts: Sequence[Sequence[int]]) -> Batch:
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
class Row:
    candidate: int | None
    row: int  # in the batch
    ids: list[int]  # accepted and decoded so far; the last one has not been through the model yet
    position: int  # of that last one


class Pool:
    """Rows of several candidates being decoded together, with their keys and values."""

    def __init__(self, speech: SpeechModel, width: int) -> None:
        self.speech = speech
        self.rows: list[Row] = []
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
        batch: Batch,
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
            self.rows.append(Row(candidate, row, [*batch.drafts[row][:n], token], batch.lengths[row] + n))
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

    def through(
        self,
        index: int,
        layer: Any,
        hidden: Tensor,
        mask: Tensor,
        positions: Tensor,
        cos_sin: CosSin,
        run: RunLayer,
    ) -> Tensor:
        """One layer for every row but those of the candidate that leaves it out."""
        member = [i for i, row in enumerate(self.rows) if row.candidate != index]
        if len(member) == len(self.rows):
            return run(layer, hidden, mask, positions, cos_sin, self.store)
        if not member:
            return hidden
        at = torch.tensor(member, device=hidden.device)
        part = run(layer, hidden[at], mask[at], positions[at], (cos_sin[0][at], cos_sin[1][at]), self.store)
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
