"""Which part of a model a tensor belongs to, by its name; nothing is loaded, no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sordino.models import registry

# First match wins. Names as transformers saves them, or llama.cpp (token_embd, blk.N, output); "layers.N" is the
# decoder once the audio tower is out.
PARTS = {
    "adapter": re.compile(r"\blora_"),
    "projector": re.compile(r"projector|\baudio_tower\.proj\d?\.|\bembed_audio\b|\baudio_adapter\b|_proj_for_speech\b"),
    "audio_encoder": re.compile(
        r"\baudio_tower\b|^(?:model\.)?encoder\.|\baudio_encoder\b|\baudio_model\b|\bspeech_encoder\b"
        r"|\baudio_embed\.encoder\b"
    ),
    "head": re.compile(r"\blm_head\b|^output\.weight$"),
    "embedding": re.compile(r"\bembed_tokens(?:_per_layer)?\b|^token_embd\b|\btok_embeddings\b|\bwte\b"),
    "other": re.compile(r"\bvision_tower\b|\bembed_vision\b|\bimage_embed\b"),
    "decoder": re.compile(r"\blayers\.\d+\.|^blk\.\d+\.|\bper_layer_model_projection\b"),
}

HEAD = "lm_head.weight"  # in the state dict of transformers' models
LAYER = re.compile(r"\b(?:layers|encoders|blk)\.(\d+)\.")  # of either stack


def part_of(name: str) -> str:
    """Which part of the model a stored tensor belongs to: a key of PARTS; final norms and the like are 'other'."""
    return next((part for part, pattern in PARTS.items() if pattern.search(name)), "other")


def is_counter(name: str) -> bool:
    """Whether it is a batch norm's number of batches: a whole number in 64 bits, in every format."""
    return name.endswith(".num_batches_tracked")


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether head and embedding are one tensor: the model's flag, which transformers 5 goes by, else the text model's,
    else what its family has."""
    model_type = str(config.get("model_type"))
    family = registry.get(model_type) if model_type in {*registry.FAMILIES, *registry.ALIASES} else None
    config = family.core(config) if family else config
    inner, usual = config.get("text_config") or {}, family is not None and family.tensors.tied
    return bool(config.get("tie_word_embeddings", inner.get("tie_word_embeddings", usual)))


def decoder_layers(config: Mapping[str, Any]) -> int | None:
    """Decoder layers by any model's config.json, of a family or not; None where it does not say."""
    text = config.get("text_config")
    layers = (text if isinstance(text, Mapping) else config).get("num_hidden_layers")
    return layers if isinstance(layers, int) else None
