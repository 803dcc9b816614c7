"""Gemma 4's decoder layer by layer: two kinds of layers, each with its own rotary embeddings, mask and head size.

A sliding layer sees the last `sliding_window` positions. The window is counted in positions and not in columns: a
cache's columns have gaps, where rows of unlike length lie side by side.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from sordino.models.decoder_line import Cache, Context, additive
from sordino.models.gemma import FULL, SLIDING


class GemmaLine:
    """gemma4_unified, whose layers share no keys and values."""

    def __init__(self, speech: Any) -> None:
        self.model = speech.model
        self.head = speech.family.decoder.logits
        self.decoder: Any = speech.part("decoder")
        self.layers = list(speech.layers("decoder"))
        self.kinds = [SLIDING if layer.self_attn.is_sliding else FULL for layer in self.layers]
        self.window = int(self.decoder.config.sliding_window)
        self.itemsize = speech.dtype.itemsize
        # `past_key_values` up to transformers 5.23
        names = inspect.signature(type(self.layers[0]).forward).parameters if self.layers else {}
        self.cache_name = "cache" if "cache" in names else "past_key_values"

    def enter(self, embeds: Tensor) -> Tensor:
        return embeds

    def context(self, hidden: Tensor, positions: Tensor, allowed: Tensor, key_positions: Tensor) -> Context:
        near = positions[:, None, :, None] - key_positions[:, None, None, :] < self.window
        seen = {FULL: allowed, SLIDING: allowed & near}
        kinds = set(self.kinds)
        return Context(
            positions,
            {kind: additive(seen[kind], hidden.dtype) for kind in kinds},
            {kind: self.decoder.rotary_emb(hidden, positions, kind) for kind in kinds},
        )

    def run_layer(self, index: int, hidden: Tensor, context: Context, cache: Cache) -> Tensor:
        kind = self.kinds[index]
        out: Tensor = self.layers[index](
            hidden,
            shared_kv_states={},  # written by the last layer of each kind, and read by none
            position_embeddings=context.rotary[kind],
            attention_mask=context.masks[kind],
            position_ids=context.positions,
            **{self.cache_name: cache},
        )
        return out

    def fill(self, index: int, hidden: Tensor, context: Context, cache: Cache) -> None:
        layer = self.layers[index]
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        shape = (*normed.shape[:-1], -1, attention.head_dim)
        keys = attention.k_proj(normed).view(shape)
        values = keys if attention.v_proj is None else attention.v_proj(normed).view(shape)
        keys = _rotated(attention.k_norm(keys), *context.rotary[self.kinds[index]])
        cache.update(keys.transpose(1, 2), attention.v_norm(values).transpose(1, 2), index)

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(self.model, self.decoder.norm(hidden))
        return logits

    def cache_bytes(self) -> int:
        return sum(2 * layer.self_attn.k_proj.out_features * self.itemsize for layer in self.layers)


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """states (B, S, heads, d); cos, sin (B, S, d)."""
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], -1)
    return states * cos.unsqueeze(2) + turned * sin.unsqueeze(2)
