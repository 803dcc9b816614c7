"""Gemma 4 E2B and E4B: a conformer on log-mel features, a decoder with a table of embeddings for every layer.

What is supported: translating, training and healing, adapters, trimming of both tables of tokens, nf4, w4a16 and mixed
exports. What is not, and is refused:

- removing decoder layers: the last layers have no keys and values of their own but read those of two others, and a
  third of the parameters lie in one table whose columns belong to layers;
- GPTQ and ranking engines that run single layers, for the same reason;
- GGUF: llama.cpp wants the ids of a prompt for the layers' table, and audio has none.

Layers of the audio encoder may be removed. Clips are encoded singly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sordino.models import gemma, processors
from sordino.models.family import Audio, AudioInputs, Chat, Decoder, Family, Stack, Table, Tensors
from sordino.models.tables import PARTS

if TYPE_CHECKING:
    from torch import Tensor

    from sordino.data.audio import Waveform

FRAME, HOP = 320, 160  # samples of a mel frame's window and between two
PADDED_TO = 128  # samples: the extractor fills up with zeros
WINDOW_TOKENS = gemma.AUDIO_TOKENS

CLIPPED = ("input_max", "input_min", "output_max", "output_min")
AUDIO_LINEARS = (
    "feed_forward1.ffw_layer_1", "feed_forward1.ffw_layer_2", "feed_forward2.ffw_layer_1",
    "feed_forward2.ffw_layer_2", "lconv1d.linear_end", "lconv1d.linear_start", "self_attn.k_proj", "self_attn.post",
    "self_attn.q_proj", "self_attn.v_proj",
)  # fmt: skip
PICTURE_LINEARS = (
    "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj",
    "self_attn.v_proj",
)  # fmt: skip


def bounds(linears: Sequence[str]) -> str:
    """Rows of the four numbers beside each clipped linear layer."""
    return "\n".join(f"#.{linear}.{bound}" for linear in linears for bound in CLIPPED)


AUDIO_ENCODER = """
layers.#.feed_forward1.ffw_layer_1.linear.weight F D
layers.#.feed_forward1.ffw_layer_2.linear.weight D F
layers.#.feed_forward1.post_layer_norm.weight D
layers.#.feed_forward1.pre_layer_norm.weight D
layers.#.feed_forward2.ffw_layer_1.linear.weight F D
layers.#.feed_forward2.ffw_layer_2.linear.weight D F
layers.#.feed_forward2.post_layer_norm.weight D
layers.#.feed_forward2.pre_layer_norm.weight D
layers.#.lconv1d.conv_norm.weight D
layers.#.lconv1d.depthwise_conv1d.weight D 1 kernel
layers.#.lconv1d.linear_end.linear.weight D D
layers.#.lconv1d.linear_start.linear.weight 2D D
layers.#.lconv1d.pre_layer_norm.weight D
layers.#.norm_out.weight D
layers.#.norm_post_attn.weight D
layers.#.norm_pre_attn.weight D
layers.#.self_attn.k_proj.linear.weight D D
layers.#.self_attn.per_dim_scale audio_head
layers.#.self_attn.post.linear.weight D D
layers.#.self_attn.q_proj.linear.weight D D
layers.#.self_attn.relative_k_proj.weight D D
layers.#.self_attn.v_proj.linear.weight D D
output_proj.bias A
output_proj.weight A D
subsample_conv_projection.input_proj_linear.weight D joined
subsample_conv_projection.layer0.conv.weight C0 1 3 3
subsample_conv_projection.layer0.norm.weight C0
subsample_conv_projection.layer1.conv.weight C1 C0 3 3
subsample_conv_projection.layer1.norm.weight C1
"""
PICTURES = """
encoder.layers.#.input_layernorm.weight E
encoder.layers.#.mlp.down_proj.linear.weight E EI
encoder.layers.#.mlp.gate_proj.linear.weight EI E
encoder.layers.#.mlp.up_proj.linear.weight EI E
encoder.layers.#.post_attention_layernorm.weight E
encoder.layers.#.post_feedforward_layernorm.weight E
encoder.layers.#.pre_feedforward_layernorm.weight E
encoder.layers.#.self_attn.k_norm.weight picture_head
encoder.layers.#.self_attn.k_proj.linear.weight EK E
encoder.layers.#.self_attn.o_proj.linear.weight E EQ
encoder.layers.#.self_attn.q_norm.weight picture_head
encoder.layers.#.self_attn.q_proj.linear.weight EQ E
encoder.layers.#.self_attn.v_proj.linear.weight EK E
patch_embedder.input_proj.weight E pixels
patch_embedder.position_embedding_table 2 places E
"""
PER_LAYER = """
embed_tokens_per_layer.weight V LP
layers.#.per_layer_input_gate.weight P H
layers.#.per_layer_projection.weight H P
layers.#.post_per_layer_input_norm.weight H
per_layer_model_projection.weight LP H
per_layer_projection_norm.weight P
"""


def load_processor(path: str, revision: str | None = None) -> gemma.GemmaProcessor:
    return gemma.open_processor(path, revision, "Gemma4AudioFeatureExtractor", 4 * HOP)


def prepare(processor: gemma.GemmaProcessor, clips: Sequence[Waveform], prompts: Sequence[str]) -> AudioInputs:
    """Waveforms (n,) at 16 kHz and rendered prompts -> ids with expanded placeholders; mel (B, T, M), which frames are
    heard (B, T), and how many frames each clip has by itself (B,).

    Raises ValueError for a clip longer than the window (the extractor would cut it silently), for one shorter than a
    frame, and for a prompt without exactly one audio placeholder.
    """
    import torch

    counts = [audio_tokens(len(clip)) for clip in clips]
    processors.refuse_long(clips, processor.window)
    for clip, count in zip(clips, counts, strict=True):
        if count < 1:
            raise ValueError(f"a clip of {len(clip)} samples is shorter than a frame")
    out = processor.feature_extractor(list(clips), return_tensors="pt", pad_to_multiple_of=PADDED_TO)
    own = torch.tensor([mel_frames(-(-len(clip) // PADDED_TO) * PADDED_TO) for clip in clips])
    audio = (out["input_features"].float(), out["input_features_mask"].bool(), own)
    return AudioInputs(gemma.expanded_ids(processor, prompts, counts), audio)


def mel_frames(samples: int) -> int:
    """Half a window of zeros stands before the first sample."""
    return max(0, (samples + FRAME // 2 - FRAME - 1) // HOP + 1)


def audio_tokens(samples: int) -> int:
    """Samples -> audio tokens: mel frames, and two convolutions of stride 2."""
    frames = mel_frames(samples)
    return min((-(-frames // 2) + 1) // 2, WINDOW_TOKENS)


def states(model: Any, inputs: AudioInputs) -> list[Tensor]:
    """mel (B, T, M) -> B tensors (A, D), each clip by itself, as it would be alone."""
    mel, heard, own = inputs.audio
    tower = model.model.audio_tower
    weight = tower.subsample_conv_projection.layer0.conv.weight
    found = []
    for rows, mask, count in zip(mel, heard, own.tolist(), strict=True):
        given = rows[None, :count].to(weight.device, weight.dtype), mask[None, :count].to(weight.device)
        out = tower(*given)
        found.append(out.last_hidden_state[0][out.attention_mask[0]])
    return found


def project(model: Any, clips: list[Tensor]) -> list[Tensor]:
    """(A, D) of every clip -> (A, H): row by row, so that clips may share one product."""
    import torch

    rows = model.model.embed_audio(torch.cat(clips))
    return list(rows.split([len(clip) for clip in clips]))


def beside(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """The layers' own embeddings of the prompt's ids, which embeddings alone do not say."""
    return {"per_layer_inputs": model.model.language_model.get_per_layer_inputs(ids)}


def letters(config: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, int]:
    """What no field of config.json says, and 0 for parts that this model has not."""
    audio, vision = config.get("audio_config") or {}, config.get("vision_config") or {}
    channels = audio.get("subsampling_conv_channels", (128, 32))
    layers = dims["encoder_layers"] if audio else 0
    width = dims["D"] if audio else 0
    found = {
        "D": width, "F": 4 * width, "2D": 2 * width, "A": dims["A"] if audio else 0, "encoder_layers": layers,
        "audio_head": width // dims["audio_heads"], "C0": channels[0] if audio else 0,
        "C1": channels[1] if audio else 0, "joined": channels[0] // 4 * channels[1] if audio else 0,
        "clipped_audio": layers if audio.get("use_clipped_linears", True) else 0,
        "LP": dims["decoder_layers"] * dims["P"], "M": channels[0] if audio else 0,
    }  # fmt: skip
    text = config.get("text_config") or {}
    shared = text.get("num_kv_shared_layers", 0) if text.get("use_double_wide_mlp") else 0
    found["wider"] = dims["I"] * shared // max(dims["decoder_layers"], 1)  # of an MLP, over all layers
    pictures = dims["pictures"] if vision else 0
    edge = 3 * vision.get("patch_size", 16) ** 2
    return found | {
        "E": dims["E"] if vision else 0, "pictures": pictures, "pixels": edge if vision else 0,
        "EQ": dims["picture_heads"] * dims["picture_head"], "EK": dims["picture_keys"] * dims["picture_head"],
        "clipped_pictures": pictures if vision.get("use_clipped_linears", False) else 0,
    }  # fmt: skip


def kept(dims: Mapping[str, int], states: int) -> tuple[float, float]:
    """Measured on a CPU. The mel of four frames and what two convolutions make of it; of a layer two MLPs four times as
    wide, attention within blocks, in 32 bits even where the rest has 16, and a gated convolution."""
    convolved = 3 * dims["M"] * dims["C0"] + dims["M"] * dims["C1"]
    return 4 * dims["M"] + convolved + 2 * dims["D"], 108 * dims["D"] + 72 * dims["audio_heads"]


def norm_bytes(dims: Mapping[str, int], b: int) -> int:
    """As the larger model's, and what the layer makes of its own embeddings; half as wide again where MLPs are."""
    own = b * (4 * dims["P"] + dims["H"]) + 8 * dims["H"] + 8 * dims["P"]
    return gemma.norm_bytes(dims, b) + own + 4 * b * dims["wider"]


def tiny(directory: str, decoder_layers: int, encoder_layers: int, seed: int) -> None:
    """Write a random small Gemma whose last layer of each kind shares keys and values, for tests."""
    import json
    from pathlib import Path

    import torch
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    ids = gemma.write_tokenizer(folder)
    types = [gemma.FULL if i % 2 else gemma.SLIDING for i in range(decoder_layers - 1)] + [gemma.FULL]
    vocabulary = -(-len(ids) // 8) * 8
    text = {
        "vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": decoder_layers, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16,
        "global_head_dim": 32, "layer_types": types, "sliding_window": 24, "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 64, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
        "max_position_embeddings": 1024,
    }  # fmt: skip
    audio = {
        "hidden_size": 64, "num_hidden_layers": encoder_layers, "num_attention_heads": 4, "output_proj_dims": 64,
        "subsampling_conv_channels": [64, 4],
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 32, "patch_size": 8, "pooling_kernel_size": 2,
        "position_embedding_size": 8,
    }  # fmt: skip
    config = Gemma4Config(
        text_config=text,
        audio_config=audio,
        vision_config=vision,
        **gemma.token_ids(ids),
    )
    torch.manual_seed(seed)
    model = Gemma4ForConditionalGeneration(config)
    with torch.no_grad():
        gemma.enliven(model)
        for module in model.model.audio_tower.modules():
            if hasattr(module, "input_min"):
                for bound in CLIPPED:
                    getattr(module, bound).fill_(3.0 if bound.endswith("max") else -3.0)
    gemma.describe_generation(model, ids)
    model.save_pretrained(directory)
    processor = {
        "audio_seq_length": 100, "processor_class": "Gemma4Processor",
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor", "feature_size": 64},
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")


GEMMA4 = Family(
    model_type="gemma4",
    model_class="Gemma4ForConditionalGeneration",
    parts=PARTS | {"projector": "model.embed_audio"},
    stacks={
        "decoder": Stack(
            "model.language_model.layers",
            "text_config",
            "num_hidden_layers",
            ("layer_types",),
            whole="its layers share keys and values, and a table of embeddings",
        ),
        "encoder": Stack("model.audio_tower.layers", "audio_config", "num_hidden_layers"),
    },
    audio=Audio(
        placeholder=lambda config: int(config.audio_token_id),
        prepare=prepare,
        states=states,
        project=project,
        tokens=audio_tokens,
        window=lambda processor: int(processor.window),
    ),
    decoder=Decoder(logits=gemma.capped_logits, beside=beside),
    chat=Chat(
        render=gemma.render,
        stop_tokens=(gemma.TURN_END, gemma.END),
        answers_end_with={"chat": gemma.TURN_END, "base": gemma.END},
        takes_system=True,
        default_system=lambda prompt: prompt.system,
    ),
    tensors=Tensors(
        saved={},
        idle=("model.vision_tower", "model.embed_vision"),
        tied=True,
        rows=("model.language_model.embed_tokens_per_layer",),
        tables={
            "model.language_model.": Table(
                gemma.DECODER + PER_LAYER,
                "decoder_layers",
                lambda dims, config, index: gemma.layer_letters(dims, config.get("text_config") or {}, index),
            ),
            "model.audio_tower.": Table(AUDIO_ENCODER, "encoder_layers"),
            "model.audio_tower.layers.": Table(bounds(AUDIO_LINEARS), "clipped_audio"),
            "model.vision_tower.": Table(PICTURES, "pictures"),
            "model.vision_tower.encoder.layers.": Table(bounds(PICTURE_LINEARS), "clipped_pictures"),
            "model.": Table(
                "embed_audio.embedding_projection.weight H A\nembed_vision.embedding_projection.weight H E"
            ),
            "": Table("lm_head.weight V H"),
        },
        fields={
            "D": ("audio_config", "hidden_size", 1024),
            "A": ("audio_config", "output_proj_dims", 1536),
            "audio_heads": ("audio_config", "num_attention_heads", 8),
            "kernel": ("audio_config", "conv_kernel_size", 5),
            "encoder_layers": ("audio_config", "num_hidden_layers", 12),
            "E": ("vision_config", "hidden_size", 768),
            "EI": ("vision_config", "intermediate_size", 3072),
            "pictures": ("vision_config", "num_hidden_layers", 16),
            "picture_heads": ("vision_config", "num_attention_heads", 12),
            "picture_keys": ("vision_config", "num_key_value_heads", 12),
            "picture_head": ("vision_config", "head_dim", 64),
            "places": ("vision_config", "position_embedding_size", 10_240),
            "H": ("text_config", "hidden_size", 2304),
            "I": ("text_config", "intermediate_size", 9216),
            "P": ("text_config", "hidden_size_per_layer_input", 256),
            "V": ("text_config", "vocab_size", 262_144),
            "decoder_layers": ("text_config", "num_hidden_layers", 30),
            "heads": ("text_config", "num_attention_heads", 8),
            "kv_heads": ("text_config", "num_key_value_heads", 4),
            "head_dim": ("text_config", "head_dim", 256),
        },
        letters=letters,
        kept=kept,
        recomputes=False,
        norm_bytes=norm_bytes,
        states_per_second=25,
        states_per_token=1,
    ),
    load_processor=load_processor,
    tiny=tiny,
    ready=gemma.take_embeddings,
)
