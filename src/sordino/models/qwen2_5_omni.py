"""Qwen2.5-Omni's thinker, the part that hears and writes: an encoder of blocks of two seconds, Qwen2 decoder.

The published checkpoints hold a talker and a vocoder besides, which are dropped here: they are bound to the thinker's
width alone, but nothing speaks. What is written has the published layout (`qwen2_5_omni` around `thinker_config`, names
under `thinker.`), because vLLM and llama.cpp read no bare thinker; transformers' thinker class reads it too. The part
that sees stays as it is: the class cannot be made without, and nothing trains or adapts it.

The last linear layer of the encoder is the projector. Rotary positions come in three rows, for time, height and width,
which are equal where nothing is seen, so that the decoder is Qwen2's.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.models import processors
from sordino.models.family import Audio, AudioInputs, Chat, Decoder, Family, Prompt, Stack, Table, Tensors, Wrapping
from sordino.models.processors import PartProcessor
from sordino.models.qwen2_audio import pooled
from sordino.models.tables import (
    LLAMA_GGUF,
    LLAMA_SILENT,
    LLAMA_TEXT,
    PARTS,
    TEXT_BIASES,
    WHISPER_LAYERS,
    WHISPER_SILENT,
    causal,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sordino.data.audio import Waveform

SAMPLING_RATE = 16_000  # Hz
HOP, FFT = 160, 400  # samples
PLACEHOLDER = "<|AUDIO|>"
AUDIO = f"<|audio_bos|>{PLACEHOLDER}<|audio_eos|>"
PROCESSOR, EXTRACTOR = "Qwen2_5OmniProcessor", "WhisperFeatureExtractor"

# In short what the published template says to texts and audio.
TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for content in message['content'] -%}
{%- if content['type'] == 'audio' or 'audio' in content or 'audio_url' in content -%}
{{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}
{%- elif 'text' in content -%}{{- content['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class OmniProcessor(PartProcessor):
    feature_extractor: Any


def load_processor(path: str, revision: str | None = None) -> OmniProcessor:
    """Raises FamilyError for another family's processor."""
    from transformers import WhisperFeatureExtractor

    directory = processors.fetched(path, revision)
    named = {"processor_class": PROCESSOR, "feature_extractor_type": EXTRACTOR}
    settings = processors.settings(directory, "feature_extractor", named)
    extractor = WhisperFeatureExtractor.from_dict(settings)
    return OmniProcessor(processors.open_tokenizer(directory), directory, extractor)


def render(processor: OmniProcessor, prompt: Prompt) -> str:
    """Prompt text with one audio placeholder; ends where the answer begins."""
    if prompt.style == "base":
        before = f"{prompt.example[0]}\n{prompt.example[1]}\n" if prompt.example else ""
        return f"{before}{AUDIO}{prompt.instruction}"
    turns: list[dict[str, Any]] = []
    if prompt.system is not None:
        turns.append({"role": "system", "content": [{"type": "text", "text": prompt.system}]})
    if prompt.example is not None:
        sentence, translation = prompt.example
        turns.append({"role": "user", "content": [{"type": "text", "text": f"{prompt.instruction} {sentence}"}]})
        turns.append({"role": "assistant", "content": [{"type": "text", "text": translation}]})
    question = [{"type": "audio", "audio": "clip"}, {"type": "text", "text": prompt.instruction}]
    turns.append({"role": "user", "content": question})
    text: str = processor.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return text


def prepare(processor: OmniProcessor, clips: Sequence[Waveform], prompts: Sequence[str]) -> AudioInputs:
    """Waveforms (n,) at 16 kHz and rendered prompts -> ids with expanded placeholders; mel (B, M, T) and frames (B,).

    The stock processor fills every clip up to the window, five minutes. Here silence follows for one more spectrum,
    which is all that the last valid frame reaches: the same numbers.
    Raises ValueError for a clip longer than the window and for a prompt without exactly one audio placeholder.
    """
    limit = window(processor)
    processors.refuse_long(clips, limit)
    texts = processors.with_audio(prompts, PLACEHOLDER, [audio_tokens(len(clip)) for clip in clips])
    longest = max(map(len, clips))
    out = processor.feature_extractor(
        list(clips), sampling_rate=SAMPLING_RATE, padding="max_length",
        max_length=min(-(-(longest + FFT) // HOP) * HOP, limit), return_attention_mask=True, return_tensors="pt",
    )  # fmt: skip
    frames = out["attention_mask"].sum(-1)
    ids = [list(map(int, row)) for row in processor.tokenizer(texts)["input_ids"]]
    return AudioInputs(ids, (out["input_features"][..., : int(frames.max())].float(), frames))


def window(processor: OmniProcessor) -> int:
    """Longest clip, in samples."""
    return int(processor.feature_extractor.n_samples)


def audio_tokens(samples: int) -> int:
    """Samples -> audio tokens: mel frames, a stride-2 convolution, then average pooling by 2."""
    return pooled(-(-samples // HOP))


def states(model: Any, inputs: AudioInputs) -> list[Tensor]:
    """mel (B, M, T) and valid frames (B,) -> B tensors (A, D), on the model's device and dtype: what the encoder's last
    layer, the projector, is given."""
    import torch
    from torch import nn

    mel, frames = inputs.audio
    encoder = copy(model.model.audio_tower)  # of its own, since several threads hear at once
    encoder._modules = {**encoder._modules, "proj": nn.Identity()}
    weight = encoder.conv1.weight
    frames = frames.to(weight.device)
    valid = torch.arange(mel.shape[-1], device=weight.device)[None] < frames[:, None]
    together = mel.to(weight.device, weight.dtype).permute(0, 2, 1)[valid].T  # (M, frames of all clips)
    rows = encoder(together, feature_lens=frames, aftercnn_lens=(frames - 1) // 2 + 1).last_hidden_state
    return list(rows.split([pooled(int(n)) for n in frames]))


def project(model: Any, clips: list[Tensor]) -> list[Tensor]:
    """(A, D) of every clip -> (A, H): row by row, so that clips may share one product."""
    import torch

    rows = model.model.audio_tower.proj(torch.cat(clips))
    return list(rows.split([len(clip) for clip in clips]))


def forget(model: Any) -> None:
    """Offsets of positions that a generation leaves, and the next forward pass of embeddings would add."""
    model.model.rope_deltas = None


def tiny(directory: str, decoder_layers: int, encoder_layers: int, seed: int) -> None:
    """Write a random thinker of under a million parameters with a byte-level tokenizer, for tests."""
    import json
    from pathlib import Path

    import torch
    from transformers import (
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        WhisperFeatureExtractor,
    )

    from sordino.models.miniature import byte_tokenizer, liven
    from sordino.models.saving import complete_config, write_model

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", PLACEHOLDER, "<|audio_bos|>", "<|audio_eos|>"]
    pictures = ["<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>"]
    named = {
        "image_token": "<|IMAGE|>", "audio_token": PLACEHOLDER, "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
    }  # fmt: skip
    tokenizer = byte_tokenizer([*special, *pictures], "<|im_end|>", "<|endoftext|>", named)
    tokenizer.chat_template = TEMPLATE
    audio, start, stop, end, pad = tokenizer.convert_tokens_to_ids(
        [PLACEHOLDER, "<|audio_bos|>", "<|audio_eos|>", "<|im_end|>", "<|endoftext|>"]
    )
    image, video, opened, closed = tokenizer.convert_tokens_to_ids(pictures)
    text = {
        "model_type": "qwen2_5_omni_text", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": decoder_layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": len(tokenizer), "max_position_embeddings": 1024, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "eos_token_id": end, "pad_token_id": pad,
    }  # fmt: skip
    hearing = {
        "model_type": "qwen2_5_omni_audio_encoder", "num_mel_bins": 80, "d_model": 64, "encoder_layers": encoder_layers,
        "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "max_source_positions": 100, "n_window": 50,
        "output_dim": 64,
    }  # fmt: skip
    seeing = {
        "model_type": "qwen2_5_omni_vision_encoder", "depth": 1, "hidden_size": 64, "intermediate_size": 64,
        "num_heads": 4, "patch_size": 8, "out_hidden_size": 64, "fullatt_block_indexes": [0],
    }  # fmt: skip
    torch.manual_seed(seed)
    config = Qwen2_5OmniThinkerConfig(
        text_config=text, audio_config=hearing, vision_config=seeing, audio_token_index=audio, image_token_index=image,
        video_token_index=video, audio_start_token_id=start, audio_end_token_id=stop, user_token_id=ord("u"),
        vision_start_token_id=opened, vision_end_token_id=closed,
    )  # fmt: skip
    model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    liven(model)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(QWEN2_5_OMNI, model, folder)
    complete_config(QWEN2_5_OMNI, folder, model)
    tokenizer.save_pretrained(directory)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=4).to_dict() | {"processor_class": PROCESSOR}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2), encoding="utf-8")


ENCODER = """
audio_bos_eos_token.weight 2 G
conv1.bias D
conv1.weight D M 3
conv2.bias D
conv2.weight D D 3
ln_post.bias D
ln_post.weight D
proj.bias G
proj.weight G D
"""
VISION = """
blocks.#.attn.k.bias E
blocks.#.attn.k.weight E E
blocks.#.attn.proj.bias E
blocks.#.attn.proj.weight E E
blocks.#.attn.q.bias E
blocks.#.attn.q.weight E E
blocks.#.attn.v.bias E
blocks.#.attn.v.weight E E
blocks.#.mlp.down_proj.bias E
blocks.#.mlp.down_proj.weight E J
blocks.#.mlp.gate_proj.bias J
blocks.#.mlp.gate_proj.weight J E
blocks.#.mlp.up_proj.bias J
blocks.#.mlp.up_proj.weight J E
blocks.#.norm1.weight E
blocks.#.norm2.weight E
merger.ln_q.weight E
merger.mlp.0.bias merged
merger.mlp.0.weight merged merged
merger.mlp.2.bias seen
merger.mlp.2.weight seen merged
patch_embed.proj.weight E channels frames patch patch
"""


QWEN2_5_OMNI = Family(
    model_type="qwen2_5_omni",
    model_class="Qwen2_5OmniThinkerForConditionalGeneration",
    wrapping=Wrapping("thinker_config", {"architectures": ["Qwen2_5OmniModel"], "enable_audio_output": False}),
    parts=PARTS | {"projector": "model.audio_tower.proj"},
    stacks={
        "decoder": Stack("model.language_model.layers", "text_config", "num_hidden_layers", ("layer_types",)),
        "encoder": Stack("model.audio_tower.layers", "audio_config", "encoder_layers"),
    },
    audio=Audio(
        placeholder=lambda config: int(config.audio_token_index),
        prepare=prepare,
        states=states,
        project=project,
        tokens=audio_tokens,
        window=window,
        batched=True,
    ),
    decoder=Decoder(line="sordino.models.decoder_line:LlamaLine", forget=forget),
    chat=Chat(
        render=render,
        stop_tokens=("<|im_end|>", "<|endoftext|>"),
        answers_end_with={"chat": "<|im_end|>", "base": "<|endoftext|>"},
        takes_system=True,
        default_system=lambda prompt: prompt.system,
    ),
    tensors=Tensors(
        saved={
            "model.audio_tower": "thinker.audio_tower",
            "model.visual": "thinker.visual",
            "model.language_model": "thinker.model",
            "lm_head": "thinker.lm_head",
        },
        idle=("model.visual", "model.audio_tower.audio_bos_eos_token"),
        ignored=("talker.", "token2wav."),
        silent=(
            *LLAMA_SILENT,
            *WHISPER_SILENT,
            "model.audio_tower.avg_pooler",
            "model.audio_tower.positional_embedding",
            "model.visual.blocks.#.mlp.act_fn",
            "model.visual.merger.mlp.1",
            "model.visual.rotary_pos_emb",
        ),
        tables={
            "thinker.audio_tower.": Table(ENCODER + WHISPER_LAYERS, "encoder_layers"),
            "thinker.visual.": Table(VISION, "blocks"),
            "thinker.": Table(causal(LLAMA_TEXT + TEXT_BIASES), "decoder_layers"),
        },
        fields={
            "M": ("audio_config", "num_mel_bins", 128),
            "D": ("audio_config", "d_model", 1280),
            "F": ("audio_config", "encoder_ffn_dim", 5120),
            "G": ("audio_config", "output_dim", 3584),
            "encoder_layers": ("audio_config", "encoder_layers", 32),
            "E": ("vision_config", "hidden_size", 3584),
            "J": ("vision_config", "intermediate_size", 3420),
            "blocks": ("vision_config", "depth", 32),
            "channels": ("vision_config", "in_channels", 3),
            "patch": ("vision_config", "patch_size", 14),
            "frames": ("vision_config", "temporal_patch_size", 2),
            "merge": ("vision_config", "spatial_merge_size", 2),
            "seen": ("vision_config", "out_hidden_size", 3584),
            "H": ("text_config", "hidden_size", 3584),
            "I": ("text_config", "intermediate_size", 18944),
            "V": ("text_config", "vocab_size", 152_064),
            "decoder_layers": ("text_config", "num_hidden_layers", 28),
            "heads": ("text_config", "num_attention_heads", 28),
            "kv_heads": ("text_config", "num_key_value_heads", 4),
            "head_dim": ("text_config", "head_dim", 0),
        },
        letters=lambda config, dims: {"merged": dims["E"] * dims["merge"] ** 2},
        window_seconds=lambda dims: 300.0,
        kept=lambda dims, states: (2 * dims["M"] + 6 * dims["D"], 9 * dims["D"] + 2 * dims["F"]),
        gguf=LLAMA_GGUF["qwen2"],
    ),
    load_processor=load_processor,
    tiny=tiny,
)
