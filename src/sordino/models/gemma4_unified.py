"""Gemma 4 12B: no encoder, a linear projector on raw frames, a decoder of sliding and full layers with a tied head.

A clip is cut into frames of 640 samples, 40 ms, the last one filled with zeros. Every frame is scaled to a mean square
of one and projected to an audio token, so that the decoder alone hears. The instruction stands before the audio.

Full layers have a head size and key-value heads of their own, under their indices in `per_layer_config`, which follows
when layers go; the last layer stays, since the configuration class makes a full one of whatever is last. The part for
pictures travels along untouched: vLLM serves no file without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sordino.models import gemma, processors
from sordino.models.family import Audio, AudioInputs, Chat, Decoder, Family, Stack, Table, Tensors
from sordino.models.tables import LLAMA_SILENT

if TYPE_CHECKING:
    from torch import Tensor

    from sordino.data.audio import Waveform

SAMPLING_RATE = 16_000  # Hz
FRAME = 640  # samples of an audio token

VISION = """
embed_vision.embedding_projection.weight H E
vision_embedder.patch_dense.bias E
vision_embedder.patch_dense.weight E pixels
vision_embedder.patch_ln1.bias pixels
vision_embedder.patch_ln1.weight pixels
vision_embedder.patch_ln2.bias E
vision_embedder.patch_ln2.weight E
vision_embedder.pos_embedding places 2 E
vision_embedder.pos_norm.bias E
vision_embedder.pos_norm.weight E
"""


def load_processor(path: str, revision: str | None = None) -> gemma.GemmaProcessor:
    return gemma.open_processor(path, revision, "Gemma4UnifiedAudioFeatureExtractor", FRAME)


def prepare(processor: gemma.GemmaProcessor, clips: Sequence[Waveform], prompts: Sequence[str]) -> AudioInputs:
    """Waveforms (n,) at 16 kHz and rendered prompts -> ids with expanded placeholders; frames (B, A, 640), counts (B,).

    Raises ValueError for a clip longer than the window and for a prompt without exactly one audio placeholder.
    """
    import torch

    processors.refuse_long(clips, processor.window)
    out = processor.feature_extractor(list(clips), return_tensors="pt")
    counts = [audio_tokens(len(clip)) for clip in clips]
    return AudioInputs(
        gemma.expanded_ids(processor, prompts, counts), (out["input_features"].float(), torch.tensor(counts))
    )


def audio_tokens(samples: int) -> int:
    """Samples -> audio tokens."""
    return -(-samples // FRAME)


def states(model: Any, inputs: AudioInputs) -> list[Tensor]:
    """The frames themselves: B tensors (A, 640), on the model's device and dtype."""
    frames, counts = inputs.audio
    like = model.get_input_embeddings().weight
    return [rows[:count].to(like.device, like.dtype) for rows, count in zip(frames, counts.tolist(), strict=True)]


def project(model: Any, clips: list[Tensor]) -> list[Tensor]:
    """(A, 640) of every clip -> (A, H): row by row, so that clips may share one product."""
    import torch

    rows = model.model.embed_audio(torch.cat(clips))
    return list(rows.split([len(clip) for clip in clips]))


def letters(config: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, int]:
    """What no field of config.json says: pixels of a patch; 0 for parts that this model has not."""
    vision = config.get("vision_config")
    found = {"D": dims["D"] if config.get("audio_config") else 0}
    if not vision:
        return found | {"E": 0, "pixels": 0, "places": 0}
    side = vision.get("patch_size", 16) * vision.get("pooling_kernel_size", 3)
    return found | {"pixels": 3 * side**2}


def tiny(directory: str, decoder_layers: int, encoder_layers: int, seed: int) -> None:
    """Write a random Gemma of a quarter of a million parameters, both kinds of layers and a short window, for tests."""
    import json
    from pathlib import Path

    import torch
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    ids = gemma.write_tokenizer(folder)
    types = [gemma.SLIDING if (i + 1) % 3 else gemma.FULL for i in range(decoder_layers - 1)] + [gemma.FULL]
    text = {
        "vocab_size": -(-len(ids) // 8) * 8, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": decoder_layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "layer_types": types,
        "sliding_window": 24, "final_logit_softcapping": 30.0, "max_position_embeddings": 1024,
    }  # fmt: skip
    vision = {
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "mm_embed_dim": 64,
        "mm_posemb_size": 8,
        "output_proj_dims": 64,
    }
    config = Gemma4UnifiedConfig(
        text_config=text,
        vision_config=vision,
        audio_config={"audio_embed_dim": FRAME},
        **gemma.token_ids(ids),
    )
    torch.manual_seed(seed)
    model = Gemma4UnifiedForConditionalGeneration(config)
    with torch.no_grad():
        gemma.enliven(model)
    gemma.describe_generation(model, ids)
    model.save_pretrained(directory)
    processor = {
        "audio_seq_length": 100, "processor_class": "Gemma4UnifiedProcessor",
        "feature_extractor": {"feature_extractor_type": "Gemma4UnifiedAudioFeatureExtractor", "feature_size": FRAME},
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")


GEMMA4_UNIFIED = Family(
    model_type="gemma4_unified",
    model_class="Gemma4UnifiedForConditionalGeneration",
    parts={
        "projector": "model.embed_audio",
        "decoder": "model.language_model",
        "embeddings": "model.language_model.embed_tokens",
        "head": "lm_head",
    },
    stacks={
        "decoder": Stack(
            "model.language_model.layers",
            "text_config",
            "num_hidden_layers",
            ("layer_types",),
            removable=gemma.all_but_the_last,
            resize=gemma.renumbered,
        ),
    },
    audio=Audio(
        placeholder=lambda config: int(config.audio_token_id),
        prepare=prepare,
        states=states,
        project=project,
        tokens=audio_tokens,
        window=lambda processor: int(processor.window),
        cached_parts=(),
    ),
    decoder=Decoder(line="sordino.models.gemma_line:GemmaLine", logits=gemma.capped_logits),
    chat=Chat(
        render=gemma.render,
        stop_tokens=(gemma.TURN_END, gemma.END),
        answers_end_with={"chat": gemma.TURN_END, "base": gemma.END},
        takes_system=True,
        default_system=lambda prompt: prompt.system,
    ),
    tensors=Tensors(
        saved={
            "model.embed_vision.multimodal_embedder.embedding_projection": "model.embed_vision.embedding_projection",
            **{
                f"model.embed_vision.{name}": f"model.vision_embedder.{name}"
                for name in ("patch_ln1", "patch_dense", "patch_ln2", "pos_embedding", "pos_norm")
            },
        },
        idle=("model.embed_vision",),
        silent=(
            *LLAMA_SILENT,
            "model.language_model.layers.#.self_attn.v_norm",
            "model.embed_audio.embedding_pre_projection_norm",
            "model.embed_vision.multimodal_embedder.embedding_pre_projection_norm",
        ),
        tied=True,
        tables={
            "model.language_model.": Table(
                gemma.DECODER,
                "decoder_layers",
                lambda dims, config, index: gemma.layer_letters(dims, config.get("text_config") or {}, index),
            ),
            "model.": Table("embed_audio.embedding_projection.weight H D" + VISION),
            "": Table("lm_head.weight V H"),
        },
        fields={
            "D": ("audio_config", "audio_embed_dim", FRAME),
            "E": ("vision_config", "mm_embed_dim", 3840),
            "places": ("vision_config", "mm_posemb_size", 1120),
            "H": ("text_config", "hidden_size", 2304),
            "I": ("text_config", "intermediate_size", 9216),
            "V": ("text_config", "vocab_size", 262_144),
            "decoder_layers": ("text_config", "num_hidden_layers", 30),
            "heads": ("text_config", "num_attention_heads", 8),
            "kv_heads": ("text_config", "num_key_value_heads", 4),
            "head_dim": ("text_config", "head_dim", 256),
        },
        letters=letters,
        norm_bytes=gemma.norm_bytes,
        states_per_second=SAMPLING_RATE / FRAME,
        states_per_token=1,
        gguf=gemma.GGUF,
    ),
    load_processor=load_processor,
    tiny=tiny,
    ready=gemma.take_embeddings,
)
