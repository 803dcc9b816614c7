"""Tables of tensors that several families share, and llama.cpp's names for the decoders among them. No torch.

Letters: D width of the audio encoder, F its feed-forward, M mel bins, P positions; H hidden size of the decoder, I its
feed-forward, Q and K widths of all query and key heads, head_dim of one, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sordino.models.family import Gguf

WHISPER_LAYERS = """
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
WHISPER_ENCODER = (
    """
conv1.bias D
conv1.weight D M 3
conv2.bias D
conv2.weight D D 3
embed_positions.weight P D
layer_norm.bias D
layer_norm.weight D
"""
    + WHISPER_LAYERS
)
WHISPER_FIELDS = {"M": ("audio_config", "num_mel_bins", 128), "P": ("audio_config", "max_source_positions", 1500)}
LLAMA_TEXT = """
embed_tokens.weight V H
layers.#.input_layernorm.weight H
layers.#.mlp.down_proj.weight H I
layers.#.mlp.gate_proj.weight I H
layers.#.mlp.up_proj.weight I H
layers.#.post_attention_layernorm.weight H
layers.#.self_attn.k_proj.weight K H
layers.#.self_attn.o_proj.weight H Q
layers.#.self_attn.q_proj.weight Q H
layers.#.self_attn.v_proj.weight K H
norm.weight H
"""
TEXT_BIASES = """
layers.#.self_attn.k_proj.bias K
layers.#.self_attn.q_proj.bias Q
layers.#.self_attn.v_proj.bias K
"""
TEXT_NORMS = """
layers.#.self_attn.k_norm.weight head_dim
layers.#.self_attn.q_norm.weight head_dim
"""


def causal(text: str) -> str:
    """A text model's tensors as those of a whole causal model: under `model.`, with a head."""
    return "lm_head.weight V H\n" + "".join(f"model.{row}\n" for row in text.split("\n") if row)


LLAMA_DECODER = causal(LLAMA_TEXT)
# where the models around a Whisper-like encoder have their parts, and what older checkpoints call them
PARTS = {
    "encoder": "model.audio_tower",
    "projector": "model.multi_modal_projector",
    "decoder": "model.language_model",
    "embeddings": "model.language_model.embed_tokens",
    "head": "lm_head",
}
SAVED = {
    "model.audio_tower": "audio_tower",
    "model.multi_modal_projector": "multi_modal_projector",
    "model.language_model": "language_model.model",
    "lm_head": "language_model.lm_head",
}
# modules without tensors: of a decoder, and of Whisper's layers
LLAMA_SILENT = ("model.language_model.layers.#.mlp.act_fn", "model.language_model.rotary_emb")
WHISPER_SILENT = ("model.audio_tower.layers.#.activation_fn",)
_OUTSIDE = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
_LLAMA = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def _multipliers(text: Any) -> dict[str, float]:
    """What llama.cpp calls Granite's four factors."""
    return {
        "attention.scale": float(text.attention_multiplier),
        "embedding_scale": float(text.embedding_multiplier),
        "logit_scale": float(text.logits_scaling),
        "residual_scale": float(text.residual_multiplier),
    }


LLAMA_GGUF = {
    "qwen2": Gguf("qwen2", _LLAMA, _OUTSIDE),
    "qwen3": Gguf("qwen3", _LLAMA | _NORMS, _OUTSIDE),
    "granite": Gguf("granite", _LLAMA, _OUTSIDE, interleaved=True, keys=_multipliers),
    "llama": Gguf("llama", _LLAMA, _OUTSIDE, interleaved=True),
}


def positions_window(dims: Mapping[str, int]) -> float:
    """Seconds that the encoder's table of positions reaches, at 50 a second."""
    return dims["P"] / 50


def normed_heads(dims: Mapping[str, int], b: int) -> int:
    """`Tensors.norm_bytes` where queries and keys are normed too."""
    return (4 + b) * (2 * dims["H"] + dims["Q"] + dims["K"])
