"""Names and shapes of Phi-4-multimodal's weights. No torch.

Letters of its own: C channels of the convolutions that shorten, N mel bins behind them, E width of what sees, J its
feed-forward, fused query, key and value rows, doubled gate and up rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sordino.models.family import Table, Tensors

HEARING, SEEING = "model.embed_tokens_extend.audio_embed", "model.embed_tokens_extend.image_embed"
SHORTENING = 3  # convolutions of stride 2


def _both(name: str, *shape: str) -> str:
    """Rows of a module's weight of this shape and of its bias."""
    return f"{name}.weight {' '.join(shape)}\n{name}.bias {shape[0]}\n"


def _mlp(name: str) -> str:
    norm = _both(f"encoders.#.{name}.layer_norm", "D")
    return norm + _both(f"encoders.#.{name}.gate_up_proj", "F2", "D") + _both(f"encoders.#.{name}.down_proj", "D", "F")


ENCODER = (
    "encoder_embedding.global_mean M\nencoder_embedding.global_invstd M\n"
    + _both("embed.conv.0", "C", "1", "3", "3")
    + "".join(_both(f"embed.conv.{at}", "C", "1", "3", "3") for at in (2, 5))
    + "".join(_both(f"embed.conv.{at}", "C", "C", "1", "1") for at in (3, 6))
    + _both("embed.out", "D", "flat")
    + "relative_attention_bias_layer.bias_values.weight buckets attn_heads\n"
    + _mlp("feed_forward_in")
    + _mlp("feed_forward_out")
    + "".join(_both(f"encoders.#.self_attn.{name}_proj", "D", "D") for name in "qkvo")
    + "".join(_both(f"encoders.#.{name}", "D") for name in ("conv.layer_norm", "layer_norm_att", "layer_norm"))
    + "encoders.#.conv.glu.b1 1 out 1\nencoders.#.conv.glu.b2 1 out 1\n"
    + _both("encoders.#.conv.glu.ext_pw_conv_1d", "out2", "D", "1")
    + _both("encoders.#.conv.dw_sep_conv_1d.dw_conv", "wide", "1", "kernel")
    + _both("encoders.#.conv.dw_sep_conv_1d.pw_conv", "separated", "wide", "1")
    + _both("encoders.#.conv.ext_pw_conv_1d", "out", "D", "1")
)
PROJECTOR = "".join(
    _both(f"up_proj_for_{name}", "H", "D") + _both(f"down_proj_for_{name}", "H", "H")
    for name in ("speech", "vision_speech")
)
PICTURES = (
    "global_img_feature_extensor 1 1 E\nsub_img_feature_extensor 1 1 1 E\n"
    + _both("img_projection_up", "H", "E")
    + _both("img_projection_down", "H", "H")
    + _both("img_processor.embeddings.patch_embedding", "E", "channels", "patch", "patch")
    + "img_processor.embeddings.position_embedding.weight patches E\n"
    + _both("img_processor.post_layernorm", "E")
    + "img_processor.head.probe 1 1 E\n"
    + "img_processor.head.attention.in_proj_weight E3 E\nimg_processor.head.attention.in_proj_bias E3\n"
    + _both("img_processor.head.attention.out_proj", "E", "E")
    + _both("img_processor.head.layernorm", "E")
    + "".join(
        _both(f"img_processor.{place}.mlp.fc1", "J", "E") + _both(f"img_processor.{place}.mlp.fc2", "E", "J")
        for place in ("head", "encoder.layers.#")
    )
    + "".join(_both(f"img_processor.encoder.layers.#.layer_norm{n}", "E") for n in (1, 2))
    + "".join(_both(f"img_processor.encoder.layers.#.self_attn.{n}_proj", "E", "E") for n in ("q", "k", "v", "out"))
)
TEXT = """
model.embed_tokens.weight V H
model.layers.#.input_layernorm.weight H
model.layers.#.mlp.down_proj.weight H I
model.layers.#.mlp.gate_up_proj.weight I2 H
model.layers.#.post_attention_layernorm.weight H
model.layers.#.self_attn.o_proj.weight H Q
model.layers.#.self_attn.qkv_proj.weight fused H
model.norm.weight H
lm_head.weight V H
"""


def letters(config: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, int]:
    """What follows from the fields."""
    symmetric = (config.get("audio_config") or {}).get("bias_symmetric", False)
    return {
        "F2": 2 * dims["F"], "I2": 2 * dims["I"], "fused": dims["Q"] + 2 * dims["K"], "out2": 2 * dims["out"],
        "wide": dims["D"] * dims["multiplier"], "flat": dims["C"] * halved(dims["M"], SHORTENING),
        "buckets": dims["reach"] if symmetric else 2 * dims["reach"], "E3": 3 * dims["E"],
        "patches": (dims["image"] // dims["patch"]) ** 2,
    }  # fmt: skip


def halved(size: int, times: int) -> int:
    """What so many convolutions of stride 2 leave."""
    for _ in range(times):
        size = (size - 1) // 2 + 1
    return size


def kept(dims: Mapping[str, int], states: int) -> tuple[float, float]:
    """Measured on a CPU. Of a state: the mel, what each convolution gives, and the last one's, rearranged. Of a layer:
    two gated MLPs, gated convolution, attention with a trained bias for every distance, which is kept whole."""
    rows = [halved(dims["M"], times) for times in (1, 2, 3)]
    front = 8 * dims["M"] + dims["C"] * (4 * rows[0] + 2 * 2 * rows[1] + 3 * rows[2])
    return front, 21 * dims["D"] + 8 * dims["F"] + dims["attn_heads"] * states


TENSORS = Tensors(
    saved={},
    idle=(SEEING, *(f"{HEARING}.{way}_proj_for_vision_speech" for way in ("up", "down"))),
    silent=(
        "model.rotary_emb",
        "model.embed_dropout",
        *(f"model.layers.#.{name}" for name in ("mlp.activation_fn", "resid_attn_dropout", "resid_mlp_dropout")),
        f"{SEEING}.drop",
        f"{SEEING}.image_token_compression",
        f"{SEEING}.img_processor.encoder.layers.#.mlp.activation_fn",
        f"{SEEING}.img_processor.head.mlp.activation_fn",
        f"{HEARING}.drop",
        f"{HEARING}.encoder.embed.act_fn",
        *(f"{HEARING}.encoder.encoders.#.feed_forward_{way}.act_fn" for way in ("in", "out")),
        *(f"{HEARING}.encoder.encoders.#.feed_forward_{way}.dropout" for way in ("in", "out")),
        *(f"{HEARING}.encoder.encoders.#.conv.{name}" for name in ("glu.glu_act", "act", "dropout")),
    ),
    tables={
        f"{HEARING}.encoder.": Table(ENCODER, "encoder_layers"),
        f"{HEARING}.": Table(PROJECTOR),
        f"{SEEING}.": Table(PICTURES, "pictures_layers"),
        "": Table(TEXT, "decoder_layers"),
    },
    fields={
        "M": ("audio_config", "input_size", 80),
        "D": ("audio_config", "hidden_size", 1024),
        "F": ("audio_config", "intermediate_size", 1536),
        "C": ("audio_config", "nemo_conv_channels", 1024),
        "out": ("audio_config", "ext_pw_out_channel", 1024),
        "separated": ("audio_config", "depthwise_separable_out_channel", 1024),
        "multiplier": ("audio_config", "depthwise_multiplier", 1),
        "kernel": ("audio_config", "kernel_size", 3),
        "reach": ("audio_config", "bias_max_distance", 1000),
        "attn_heads": ("audio_config", "num_attention_heads", 16),
        "encoder_layers": ("audio_config", "num_blocks", 24),
        "E": ("vision_config", "hidden_size", 1152),
        "J": ("vision_config", "intermediate_size", 4304),
        "channels": ("vision_config", "num_channels", 3),
        "image": ("vision_config", "image_size", 448),
        "patch": ("vision_config", "patch_size", 14),
        "pictures_layers": ("vision_config", "num_hidden_layers", 27),
        "H": ("", "hidden_size", 3072),
        "I": ("", "intermediate_size", 8192),
        "V": ("", "vocab_size", 200_064),
        "decoder_layers": ("", "num_hidden_layers", 32),
        "heads": ("", "num_attention_heads", 32),
        "kv_heads": ("", "num_key_value_heads", 8),
        "head_dim": ("", "head_dim", 0),
    },
    letters=letters,
    states_per_second=12.5,
    states_per_token=1.0,
    kept=kept,
    recomputes=False,
)
