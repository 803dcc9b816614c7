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
    "projector": re.compile(r"projector|\bembed_audio\b|\baudio_adapter\b"),
    "audio_encoder": re.compile(r"\baudio_tower\b|\baudio_encoder\b|\baudio_model\b|\bspeech_encoder\b"),
    "head": re.compile(r"\blm_head\b|^output\.weight$"),
    "embedding": re.compile(r"\bembed_tokens(?:_per_layer)?\b|^token_embd\b|\btok_embeddings\b|\bwte\b"),
    "other": re.compile(r"\bvision_tower\b|\bembed_vision\b"),
    "decoder": re.compile(r"\blayers\.\d+\.|^blk\.\d+\."),
}

LAYER = re.compile(r"\b(?:layers|blk)\.(\d+)\.")  # of either stack


def part_of(name: str) -> str:
    """Which part of the model a stored tensor belongs to: a key of PARTS; final norms and the like are 'other'."""
    return next((part for part, pattern in PARTS.items() if pattern.search(name)), "other")


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether head and embedding are one tensor: the text model's flag, else the model's, else what its family has."""
    inner = config.get("text_config") or {}
    model_type = str(config.get("model_type"))
    usual = model_type in registry.FAMILIES and registry.get(model_type).tensors.tied
    return bool(inner.get("tie_word_embeddings", config.get("tie_word_embeddings", usual)))
