"""Names and shapes of Granite Speech's weights: conformer, Q-Former, Granite decoder. No torch.

Letters of its own: C channels of the convolutions, R rows of the table of distances, W width of the Q-Former, J its
feed-forward, O classes that the encoder recognises halfway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sordino.models.family import Table, Tensors
from sordino.models.tables import LLAMA_GGUF, LLAMA_SILENT, LLAMA_TEXT, causal


def _half(name: str) -> str:
    return f"""
layers.#.{name}.down_proj.bias D
layers.#.{name}.down_proj.weight D F
layers.#.{name}.pre_norm.bias D
layers.#.{name}.pre_norm.weight D
layers.#.{name}.up_proj.bias F
layers.#.{name}.up_proj.weight F D
"""


ENCODER = f"""
input_linear.bias D
input_linear.weight D M
{_half("ff1")}{_half("ff2")}
layers.#.attn.pre_norm.bias D
layers.#.attn.pre_norm.weight D
layers.#.attn.rel_pos_emb.weight R attn_head
layers.#.attn.to_kv.weight attn_kv D
layers.#.attn.to_out.bias D
layers.#.attn.to_out.weight D attn_q
layers.#.attn.to_q.weight attn_q D
layers.#.conv.batch_norm.bias C
layers.#.conv.batch_norm.num_batches_tracked
layers.#.conv.batch_norm.running_mean C
layers.#.conv.batch_norm.running_var C
layers.#.conv.batch_norm.weight C
layers.#.conv.depth_conv.conv.weight C 1 kernel
layers.#.conv.down_conv.bias D
layers.#.conv.down_conv.weight D C 1
layers.#.conv.norm.bias D
layers.#.conv.norm.weight D
layers.#.conv.up_conv.bias gated
layers.#.conv.up_conv.weight gated D 1
layers.#.post_norm.bias D
layers.#.post_norm.weight D
out.bias O
out.weight O D
out_mid.bias D
out_mid.weight D O
"""


def _attention(name: str, own: str, heard: str) -> str:
    """own: width of the queries, or a letter that is 0 in layers without this attention; heard: of keys' inputs."""
    place = f"qformer.encoder.layer.#.{name}"
    return f"""
{place}.attention.key.bias {own}
{place}.attention.key.weight {own} {heard}
{place}.attention.query.bias {own}
{place}.attention.query.weight {own} {own}
{place}.attention.value.bias {own}
{place}.attention.value.weight {own} {heard}
{place}.output.LayerNorm.bias {own}
{place}.output.LayerNorm.weight {own}
{place}.output.dense.bias {own}
{place}.output.dense.weight {own} {own}
"""


PROJECTOR = f"""
linear.bias H
linear.weight H W
qformer.layernorm.bias W
qformer.layernorm.weight W
query 1 queries W
{_attention("attention", "W", "W")}{_attention("crossattention", "crossing", "heard")}
qformer.encoder.layer.#.intermediate_query.dense.bias J
qformer.encoder.layer.#.intermediate_query.dense.weight J W
qformer.encoder.layer.#.output_query.LayerNorm.bias W
qformer.encoder.layer.#.output_query.LayerNorm.weight W
qformer.encoder.layer.#.output_query.dense.bias W
qformer.encoder.layer.#.output_query.dense.weight W J
"""


def letters(config: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, int]:
    """What follows from the fields; a decoder without a number of key heads has as many as query heads."""
    head = dims["attn_head"] or dims["D"] // dims["attn_heads"]
    inner = dims["D"] * dims["expansion"]
    return {
        "F": dims["D"] * dims["mult"], "R": 2 * dims["reach"] + 1, "attn_head": head, "C": inner, "gated": 2 * inner,
        "attn_q": head * dims["attn_heads"], "attn_kv": 2 * head * dims["attn_heads"], "crossing": dims["W"],
        "queries": dims["window"] // dims["rate"], "K": dims["K"] or dims["Q"],
    }  # fmt: skip


def crossing(dims: Mapping[str, int], config: Mapping[str, Any], index: int) -> dict[str, int]:
    """Only every so manieth layer of a Q-Former hears the encoder."""
    return {} if index % dims["every"] == 0 else {"crossing": 0}


def kept(dims: Mapping[str, int], states: int) -> tuple[float, float]:
    """Measured on a CPU, where dropout keeps factors and not bits. Of a layer: two MLPs, attention within blocks of 200
    states with a table of distances for every clip, gated convolution. The Q-Former's layers count before them."""
    width, heads, context = dims["D"], dims["attn_q"], dims["context"]
    front = dims["M"] + 2 * width + 2 * dims["O"] + dims["qformer_layers"] * (5 * dims["W"] + dims["J"] / 2)
    table = context**2 * dims["attn_head"] / max(states, 1)
    attention = 5 * heads + dims["attn_heads"] * context + table  # in 32 bits even where the rest has 16
    return front, 13 * width + 6 * dims["F"] + 6 * dims["C"] + 1.6 * attention


TENSORS = Tensors(
    silent=(
        *LLAMA_SILENT,
        *(
            f"model.encoder.layers.#.{name}"
            for name in (
                "attn.dropout",
                "conv.dropout",
                "conv.glu",
                "conv.silu",
                "ff1.dropout",
                "ff1.silu",
                "ff2.dropout",
                "ff2.silu",
            )
        ),
        *(
            f"model.projector.qformer.encoder.layer.#.{name}"
            for name in (
                "attention.output.dropout",
                "crossattention.output.dropout",
                "intermediate_query.intermediate_act_fn",
                "output_query.dropout",
            )
        ),
        "model.projector.qformer.dropout",
    ),
    saved={
        "model.encoder": "encoder",
        "model.projector": "projector",
        "model.language_model": "language_model.model",
        "lm_head": "language_model.lm_head",
    },
    tied=True,
    tables={
        "encoder.": Table(ENCODER, "encoder_layers"),
        "projector.": Table(PROJECTOR, "qformer_layers", crossing),
        "language_model.": Table(causal(LLAMA_TEXT), "decoder_layers"),
    },
    fields={
        "M": ("encoder_config", "input_dim", 160),
        "D": ("encoder_config", "hidden_dim", 1024),
        "O": ("encoder_config", "output_dim", 42),
        "mult": ("encoder_config", "feedforward_mult", 4),
        "attn_heads": ("encoder_config", "num_heads", 8),
        "attn_head": ("encoder_config", "dim_head", 0),
        "context": ("encoder_config", "context_size", 200),
        "reach": ("encoder_config", "max_pos_emb", 512),
        "kernel": ("encoder_config", "conv_kernel_size", 15),
        "expansion": ("encoder_config", "conv_expansion_factor", 2),
        "encoder_layers": ("encoder_config", "num_layers", 10),
        "W": ("projector_config", "hidden_size", 768),
        "J": ("projector_config", "intermediate_size", 3072),
        "heard": ("projector_config", "encoder_hidden_size", 1408),
        "every": ("projector_config", "cross_attention_frequency", 2),
        "qformer_layers": ("projector_config", "num_hidden_layers", 12),
        "window": ("", "window_size", 15),
        "rate": ("", "downsample_rate", 5),
        "H": ("text_config", "hidden_size", 4096),
        "I": ("text_config", "intermediate_size", 11008),
        "V": ("text_config", "vocab_size", 32_000),
        "decoder_layers": ("text_config", "num_hidden_layers", 32),
        "heads": ("text_config", "num_attention_heads", 32),
        "kv_heads": ("text_config", "num_key_value_heads", 0),
        "head_dim": ("text_config", "head_dim", 0),
    },
    letters=letters,
    states_per_token=5.0,
    kept=kept,
    recomputes=False,
    gguf=LLAMA_GGUF["granite"],
)
