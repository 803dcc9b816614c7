"""The tensors of a model from its config.json alone: names as transformers saves them, and shapes. No torch.

One table per family, as data: `name  dimensions`, where # is a layer's index and letters are fields of the config:
D width of the audio encoder, F its feed-forward, M mel bins, P positions; H hidden size of the decoder, I its
feed-forward, Q and K widths of all query and key heads, V vocabulary, G width of what the projector gets.
A config leaves out what equals its class's default (Qwen2-Audio-7B's names neither its width nor its layers), so the
defaults are in the table too; tests/measure/test_shapes.py compares all of it with transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sordino.errors import FamilyError
from sordino.models.parts import is_tied, part_of

Kind = Literal["linear", "head", "embedding", "other"]

ENCODER = """
conv1.bias D
conv1.weight D M 3
conv2.bias D
conv2.weight D D 3
embed_positions.weight P D
layer_norm.bias D
layer_norm.weight D
layers.#.fc1.bias F
layers.#.fc1.weight F D
layers.#.fc2.bias D
layers.#.fc2.weight D F
layers.#.final_layer_norm.bias D
layers.#.final_layer_norm.weight D
layers.#.self_attn.k_proj.weight D D
layers.#.self_attn.out_proj.bias D
layers.#.self_attn.out_proj.weight D D
layers.#.self_attn.q_proj.bias D
layers.#.self_attn.q_proj.weight D D
layers.#.self_attn.v_proj.bias D
layers.#.self_attn.v_proj.weight D D
layers.#.self_attn_layer_norm.bias D
layers.#.self_attn_layer_norm.weight D
"""
DECODER = """
lm_head.weight V H
model.embed_tokens.weight V H
model.layers.#.input_layernorm.weight H
model.layers.#.mlp.down_proj.weight H I
model.layers.#.mlp.gate_proj.weight I H
model.layers.#.mlp.up_proj.weight I H
model.layers.#.post_attention_layernorm.weight H
model.layers.#.self_attn.k_proj.weight K H
model.layers.#.self_attn.o_proj.weight H Q
model.layers.#.self_attn.q_proj.weight Q H
model.layers.#.self_attn.v_proj.weight K H
model.norm.weight H
"""
DECODER_BIASES = """
model.layers.#.self_attn.k_proj.bias K
model.layers.#.self_attn.q_proj.bias Q
model.layers.#.self_attn.v_proj.bias K
"""


@dataclass(frozen=True)
class Architecture:
    """tables: prefix of the names -> rows. fields: letter, or a name below, -> (sub-config, field, default).

    window_seconds: the longest clip it hears at once. pads_audio: whether a shorter clip costs the whole window.
    states_per_token: encoder states (50 a second) that one audio token of the decoder stands for.
    """

    tables: Mapping[str, str]
    fields: Mapping[str, tuple[str, str, int]]
    encoder: str  # prefix of the table whose # counts the encoder's layers
    pads_audio: bool
    states_per_token: int


ARCHITECTURES = {
    "qwen2_audio": Architecture(
        tables={
            "audio_tower.": ENCODER,
            "language_model.": DECODER + DECODER_BIASES,
            "multi_modal_projector.": "linear.bias H\nlinear.weight H D",
        },
        fields={
            "D": ("audio_config", "d_model", 1280),
            "F": ("audio_config", "encoder_ffn_dim", 5120),
            "M": ("audio_config", "num_mel_bins", 128),
            "P": ("audio_config", "max_source_positions", 1500),
            "encoder_layers": ("audio_config", "encoder_layers", 32),
            "H": ("text_config", "hidden_size", 4096),
            "I": ("text_config", "intermediate_size", 22016),
            "V": ("text_config", "vocab_size", 151_936),
            "decoder_layers": ("text_config", "num_hidden_layers", 32),
            "heads": ("text_config", "num_attention_heads", 32),
            "kv_heads": ("text_config", "num_key_value_heads", 32),
            "head_dim": ("text_config", "head_dim", 0),  # 0: H / heads
        },
        encoder="audio_tower.",
        pads_audio=False,
        states_per_token=2,
    ),
    "voxtral": Architecture(
        tables={
            "audio_tower.": ENCODER,
            "language_model.": DECODER,
            "multi_modal_projector.": "linear_1.weight H G\nlinear_2.weight H H",
        },
        fields={
            "D": ("audio_config", "hidden_size", 1280),
            "F": ("audio_config", "intermediate_size", 5120),
            "G": ("audio_config", "intermediate_size", 5120),
            "M": ("audio_config", "num_mel_bins", 128),
            "P": ("audio_config", "max_source_positions", 1500),
            "encoder_layers": ("audio_config", "num_hidden_layers", 32),
            "H": ("text_config", "hidden_size", 3072),
            "I": ("text_config", "intermediate_size", 8192),
            "V": ("text_config", "vocab_size", 131_072),
            "decoder_layers": ("text_config", "num_hidden_layers", 30),
            "heads": ("text_config", "num_attention_heads", 32),
            "kv_heads": ("text_config", "num_key_value_heads", 8),
            "head_dim": ("text_config", "head_dim", 128),
        },
        encoder="audio_tower.",
        pads_audio=True,
        states_per_token=4,
    ),
}


@dataclass(frozen=True)
class Shape:
    """One tensor. kind: linear (the weight of a linear layer but the head), head, embedding, other."""

    name: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def part(self) -> str:
        """A key of parts.PARTS."""
        return part_of(self.name)


@dataclass(frozen=True)
class Model:
    """A model as its config describes it. tensors: sorted by name; a tied head is not among them."""

    architecture: Architecture
    dims: Mapping[str, int]  # the letters above, encoder_layers, decoder_layers, heads, kv_heads
    tensors: tuple[Shape, ...]
    tied: bool

    @property
    def parameters(self) -> int:
        return count(self.tensors)

    @property
    def window_seconds(self) -> float:
        return self.dims["P"] / 50


def model(
    config: Mapping[str, Any],
    *,
    vocabulary: int | None = None,
    decoder_layers: int | None = None,
    encoder_layers: int | None = None,
) -> Model:
    """config.json -> the model, or what pruning or trimming would leave of it.

    Raises FamilyError for a family whose shapes are not in ARCHITECTURES or a config that makes no sense.
    """
    wanted = str(config.get("model_type"))
    if wanted not in ARCHITECTURES:
        raise FamilyError(
            f"the shapes of '{wanted}' models are not known; known: {', '.join(ARCHITECTURES)}.",
            "Add a table to models/shapes.py, or inspect the weights themselves.",
        )
    architecture = ARCHITECTURES[wanted]
    dims = _dims(architecture, config)
    changed = {"V": vocabulary, "decoder_layers": decoder_layers, "encoder_layers": encoder_layers}
    dims |= {name: value for name, value in changed.items() if value is not None}
    tied = is_tied(config)
    found = []
    for prefix, table in architecture.tables.items():
        layers = dims["encoder_layers" if prefix == architecture.encoder else "decoder_layers"]
        for row in filter(None, table.splitlines()):
            name, *letters = row.split()
            shape = tuple(int(x) if x.isdigit() else dims[x] for x in letters)
            kind = _kind(name, shape)
            if kind == "head" and tied:
                continue
            names = [name.replace("#", str(i)) for i in range(layers)] if "#" in name else [name]
            found += [Shape(prefix + each, shape, kind) for each in names]
    return Model(architecture, dims, tuple(sorted(found, key=lambda tensor: tensor.name)), tied)


def lora(tensors: Iterable[Shape], rank: int, *, decoder_only: bool = False) -> tuple[Shape, ...]:
    """An adapter of all linear layers, or the decoder's: A (r, in) and B (out, r) of each, named as peft names them."""
    found = []
    for tensor in tensors:
        if tensor.kind == "linear" and (tensor.part == "decoder" or not decoder_only):
            name = f"base_model.model.model.{tensor.name.removesuffix('.weight')}"
            name = name.replace("model.language_model.model.", "model.language_model.")  # names of the live modules
            rows, columns = tensor.shape
            found += [Shape(f"{name}.lora_A.weight", (rank, columns), "other")]
            found += [Shape(f"{name}.lora_B.weight", (rows, rank), "other")]
    return tuple(found)


def count(tensors: Iterable[Shape]) -> int:
    """Elements of all tensors."""
    return sum(tensor.elements for tensor in tensors)


def _dims(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, int]:
    dims = {}
    for name, (section, key, default) in architecture.fields.items():
        value = (config.get(section) or {}).get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise FamilyError(f"config.json: {section}.{key} is {value!r} and not a size.", "Copy the model again.")
        dims[name] = value
    if not dims["heads"]:
        raise FamilyError("config.json: text_config.num_attention_heads is 0.", "Copy the model again.")
    head = dims["head_dim"] or dims["H"] // dims["heads"]
    return dims | {"Q": dims["heads"] * head, "K": dims["kv_heads"] * head}


def _kind(name: str, shape: tuple[int, ...]) -> Kind:
    if "lm_head" in name:
        return "head"
    if "embed_tokens" in name:
        return "embedding"
    return "linear" if len(shape) == 2 and "embed" not in name else "other"
