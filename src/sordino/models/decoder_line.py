"""Running a decoder layer by layer: the fast way to rank, to round and to look inside.

A line runs single layers of a loaded decoder on hidden states, with masks and rotary embeddings prepared once for a
batch and a cache of the caller's. Shapes: B rows, S positions, C columns of the cache behind them, H hidden size.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sordino.errors import FamilyError
from sordino.models.family import Family

CosSin = tuple[Tensor, Tensor]


class Cache(Protocol):
    """What attention layers call: take keys and values (B, heads, S, d), give back all columns so far."""

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Context:
    """positions: (B, S). masks: layer type -> additive (B, 1, S, C + S); rotary: layer type -> cos, sin (B, S, d)."""

    positions: Tensor
    masks: Mapping[str, Tensor]
    rotary: Mapping[str, CosSin]

    def rows(self, at: Tensor) -> Context:
        """Of some rows (indices)."""
        masks = {kind: mask[at] for kind, mask in self.masks.items()}
        return Context(self.positions[at], masks, {k: (cos[at], sin[at]) for k, (cos, sin) in self.rotary.items()})

    def split_at(self, first: int) -> tuple[Context, Context]:
        """Of the positions before `first`, and of the others."""
        return self._part(slice(None, first)), self._part(slice(first, None))

    def _part(self, part: slice) -> Context:
        return Context(
            self.positions[:, part],
            {kind: mask[:, :, part] for kind, mask in self.masks.items()},
            {kind: (cos[:, part], sin[:, part]) for kind, (cos, sin) in self.rotary.items()},
        )


class DecoderLine(Protocol):
    """One loaded decoder; `layers` follows its layer list at the time the line was made."""

    layers: list[Any]

    def enter(self, embeds: Tensor) -> Tensor:
        """Embeddings (B, S, H) as the first layer takes them."""
        ...

    def context(self, hidden: Tensor, positions: Tensor, allowed: Tensor, key_positions: Tensor) -> Context:
        """allowed: (B, 1, S, C) which columns a position may see; key_positions: (B, C) of those columns."""
        ...

    def run_layer(self, index: int, hidden: Tensor, context: Context, cache: Cache) -> Tensor:
        """(B, S, H) -> (B, S, H); the layer's keys and values go into the cache under `index`."""
        ...

    def fill(self, index: int, hidden: Tensor, context: Context, cache: Cache) -> None:
        """Put a layer's keys and values into the cache and compute nothing else."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """What the last layer gave (..., H) -> (..., V)."""
        ...

    def cache_bytes(self) -> int:
        """Bytes of one column's keys and values in all layers."""
        ...


def open_line(family: Family, speech: Any) -> DecoderLine:
    """The family's fast line on a loaded model. Raises FamilyError where it has none."""
    if family.decoder.line is None:
        raise FamilyError(
            f"{family.model_type} models have no decoder line: their layers cannot be run one at a time.",
            "Take another format or criterion.",
        )
    module, _, name = family.decoder.line.partition(":")
    line: DecoderLine = getattr(importlib.import_module(module), name)(speech)
    return line


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean mask -> 0 where allowed, the type's lowest number elsewhere (what eager and sdpa both take)."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


class LlamaLine:
    """Decoders of the Llama line, Qwen2 and Qwen3 among them: one kind of layer, rotary embeddings common to all."""

    KIND = "full_attention"

    def __init__(self, speech: Any) -> None:
        self.model = speech.model
        self.head = speech.family.decoder.logits
        self.decoder: Any = speech.part("decoder")
        self.layers = list(speech.layers("decoder"))
        others = set(getattr(self.decoder.config, "layer_types", None) or ()) - {self.KIND}
        if others:
            raise FamilyError(
                f"{speech.path}: some decoder layers are of the type '{min(others)}', which are not run singly.",
                "Use a model in which all layers have full attention.",
            )
        self.itemsize = speech.dtype.itemsize
        # `past_key_values` up to transformers 5.23
        names = inspect.signature(type(self.layers[0]).forward).parameters if self.layers else {}
        self.cache_name = "cache" if "cache" in names else "past_key_values"

    def enter(self, embeds: Tensor) -> Tensor:
        return embeds

    def context(self, hidden: Tensor, positions: Tensor, allowed: Tensor, key_positions: Tensor) -> Context:
        rotary = self.decoder.rotary_emb(hidden, positions)
        return Context(positions, {self.KIND: additive(allowed, hidden.dtype)}, {self.KIND: rotary})

    def run_layer(self, index: int, hidden: Tensor, context: Context, cache: Cache) -> Tensor:
        out: Tensor = self.layers[index](
            hidden,
            attention_mask=context.masks[self.KIND],
            position_ids=context.positions,
            use_cache=True,
            position_embeddings=context.rotary[self.KIND],
            **{self.cache_name: cache},
        )
        return out

    def fill(self, index: int, hidden: Tensor, context: Context, cache: Cache) -> None:
        layer = self.layers[index]
        keys, values = llama_keys_values(layer, hidden, context.rotary[self.KIND])
        cache.update(keys, values, index)

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(self.model, self.decoder.norm(hidden))
        return logits

    def cache_bytes(self) -> int:
        config = self.decoder.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(len(self.layers) * 2 * config.num_key_value_heads * head * self.itemsize)


class GraniteLine(LlamaLine):
    """Granite's: embeddings are multiplied on the way in, layers and head do the rest themselves."""

    def enter(self, embeds: Tensor) -> Tensor:
        return embeds * float(self.decoder.embedding_multiplier)


class PhiLine(LlamaLine):
    """Phi's: queries, keys and values are one projection, and a share of every head is rotated."""

    def fill(self, index: int, hidden: Tensor, context: Context, cache: Cache) -> None:
        layer, config = self.layers[index], self.decoder.config
        attention = layer.self_attn
        fused = attention.qkv_proj(layer.input_layernorm(hidden)).view(*hidden.shape[:-1], -1, attention.head_dim)
        both = fused[..., config.num_attention_heads :, :].transpose(1, 2)
        keys, values = both.split(config.num_key_value_heads, dim=1)
        cache.update(rotated(keys, context.rotary[self.KIND]), values, index)


def rotated(keys: Tensor, cos_sin: CosSin) -> Tensor:
    """Keys (B, heads, S, d) with the rotary embedding, cos and sin (B, S, r) each, on their first r dimensions."""
    cos, sin = (part.unsqueeze(1) for part in cos_sin)
    turned, rest = keys[..., : cos.shape[-1]], keys[..., cos.shape[-1] :]
    half = turned.shape[-1] // 2
    return torch.cat([turned * cos + torch.cat([-turned[..., half:], turned[..., :half]], -1) * sin, rest], -1)


def llama_keys_values(layer: Any, hidden: Tensor, cos_sin: CosSin) -> tuple[Tensor, Tensor]:
    """What a layer of the Llama line puts into the cache for its input (B, S, H), and no more.

    cos_sin: (B, S, d) each, the rotary embedding's -> keys and values (B, heads, S, d).
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(shape)
    if hasattr(attention, "k_norm"):  # Qwen3's
        keys = attention.k_norm(keys)
    keys = keys.transpose(1, 2)
    values = attention.v_proj(normed).view(shape).transpose(1, 2)
    return rotated(keys, cos_sin), values
