"""Bytes of a choice at the true size of Qwen2-Audio-7B, and names of the shortened model's weights."""

from __future__ import annotations

import random

import pytest

from sordino.layouts import tables
from sordino.models import shapes
from sordino.pruning.search import Layer
from sordino.quantization import allocation, mixture
from sordino.quantization.sensitivity import Change, Cost
from tests.models.test_shapes import QWEN2_AUDIO_7B


def costs(model: shapes.Model, layers: int) -> dict[Change, Cost]:
    """Made up: parts as sensitive as it happens, four times less with every bit; drops are for the utmost need."""
    draw = random.Random(0)
    changes = mixture.changes(model, layers)
    rounded = {c: Cost(c, draw.lognormvariate(-6, 1) * 4.0 ** (4 - c.bits)) for c in changes if c.part}
    return rounded | {c: Cost(c, 90.0 * c.dropped) for c in changes if not c.part}


@pytest.mark.parametrize("gigabytes", [2.6, 3.0, 4.0])
def test_a_7b_model_fills_its_budget(gigabytes: float) -> None:
    model = shapes.model(QWEN2_AUDIO_7B)
    order = [Layer("decoder", i) for i in (20, 3, 11)]
    options, fixed, drops = mixture.problem(model, costs(model, 3), order)
    assert len(options) == 32 * 3 + 3
    limit = int(gigabytes * 1e9)
    choice = allocation.choose(options, limit, fixed, drops)
    assert (choice.dropped > 0) == (gigabytes == 2.6)  # 2.725 GB is the least with all layers
    gone = {layer.index for layer in order[: choice.dropped]}
    left = [i for i in range(32) if i not in gone]
    shorter = shapes.model(QWEN2_AUDIO_7B, decoder_layers=len(left))
    bits = mixture.by_name(shorter, choice.bits, left)
    file = tables.safetensors_bytes(tables.mixed(shorter.tensors, bits))
    assert file <= choice.bytes <= limit
    assert choice.bytes - file < 20_000  # offsets in the header are taken to be long
    assert file > 0.998 * limit


def test_names_of_the_shortened_model() -> None:
    model = shapes.model(QWEN2_AUDIO_7B, decoder_layers=3, encoder_layers=1)
    bits = dict.fromkeys(mixture.parts(shapes.model(QWEN2_AUDIO_7B, encoder_layers=1)), 16)
    bits |= {"decoder.7.mlp": 3, "decoder.30.attention": 2, "encoder.0": 4, "decoder.1.mlp": 8}
    found = mixture.by_name(model, bits, [0, 7, 30])
    decoder = {name.split("layers.")[1]: width for name, width in found.items() if "language_model" in name}
    assert decoder == {
        **{f"1.mlp.{name}_proj.weight": 3 for name in ("down", "gate", "up")},
        **{f"2.self_attn.{name}_proj.weight": 2 for name in "kqvo"},
    }
    assert {width for name, width in found.items() if "audio_tower" in name} == {4}


def test_a_tied_head_keeps_the_embedding_whole() -> None:
    tied = shapes.model(QWEN2_AUDIO_7B | {"text_config": QWEN2_AUDIO_7B["text_config"] | {"tie_word_embeddings": True}})
    assert not [change for change in mixture.changes(tied) if change.part in ("embedding", "head")]
    assert [change.bits for change in mixture.changes(shapes.model(QWEN2_AUDIO_7B)) if change.part == "embedding"] == [
        8
    ]
