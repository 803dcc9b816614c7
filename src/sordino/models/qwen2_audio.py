"""Qwen2-Audio: Whisper-style encoder, linear projector, Qwen2 decoder.

Written for transformers >= 5.10, where the live module names are `model.audio_tower`,
`model.multi_modal_projector`, `model.language_model.layers`; saved keys keep their older names.

The stock encoder runs on the whole 30 s window and masks the padding. `states` runs the same layers on the
batch's true length: equal on the valid frames, and several times faster on short clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sordino.models import processors
from sordino.models.family import Audio, AudioInputs, Chat, Decoder, Family, Prompt, Stack, Table, Tensors
from sordino.models.tables import (
    LLAMA_GGUF,
    LLAMA_SILENT,
    LLAMA_TEXT,
    PARTS,
    SAVED,
    TEXT_BIASES,
    WHISPER_ENCODER,
    WHISPER_FIELDS,
    WHISPER_SILENT,
    causal,
    positions_window,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sordino.data.audio import Waveform

SAMPLING_RATE = 16_000  # Hz
HOP = 160  # samples between mel frames
AUDIO = "<|audio_bos|><|AUDIO|><|audio_eos|>"
# conv1 and conv2 (kernel 3) let the last valid frame see two frames of padding; keep them, or it would see zeros.
RECEPTIVE_FRAMES = 2


def load_processor(path: str, revision: str | None = None) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(path, revision=revision)


def render(processor: Any, prompt: Prompt) -> str:
    """Prompt text with one audio placeholder; ends where the answer begins."""
    if prompt.style == "base":
        before = f"{prompt.example[0]}\n{prompt.example[1]}\n" if prompt.example else ""
        return f"{before}{AUDIO}{prompt.instruction}"
    turns: list[dict[str, Any]] = []
    if prompt.system is not None:
        turns.append({"role": "system", "content": prompt.system})
    if prompt.example is not None:
        sentence, translation = prompt.example
        turns.append({"role": "user", "content": [{"type": "text", "text": f"{prompt.instruction} {sentence}"}]})
        turns.append({"role": "assistant", "content": translation})
    question = [{"type": "audio", "audio_url": "clip"}, {"type": "text", "text": prompt.instruction}]
    turns.append({"role": "user", "content": question})
    text: str = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return text


def prepare(processor: Any, clips: Sequence[Waveform], prompts: Sequence[str]) -> AudioInputs:
    """Waveforms (n,) at 16 kHz and rendered prompts -> ids with expanded placeholders; mel (B, M, T) and frames (B,).

    Raises ValueError for a clip longer than the window (the extractor would cut it silently) and where the
    processor returned no features (it ignores an unknown audio argument with only a warning).
    """
    import torch

    processors.refuse_long(clips, window(processor))
    out = processor(text=list(prompts), audio=list(clips), sampling_rate=SAMPLING_RATE, padding=False)
    if "input_features" not in out:
        raise ValueError("the processor returned no audio features")
    mel = torch.as_tensor(out["input_features"], dtype=torch.float32)
    frames = torch.as_tensor(out["feature_attention_mask"]).sum(-1)
    return AudioInputs([list(map(int, ids)) for ids in out["input_ids"]], (mel, frames))


def window(processor: Any) -> int:
    """Longest clip, in samples."""
    return int(processor.feature_extractor.n_samples)


def audio_tokens(samples: int) -> int:
    """Samples -> audio tokens: mel frames, a stride-2 convolution, then average pooling by 2."""
    return pooled(-(-samples // HOP))


def pooled(frames: int) -> int:
    """Valid mel frames -> audio tokens."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def states(model: Any, inputs: AudioInputs) -> list[Tensor]:
    """mel (B, M, T) and valid frames (B,) -> B tensors (A, D), on the model's device and dtype."""
    import torch
    from torch import nn
    from transformers.masking_utils import create_bidirectional_mask

    mel, frames = inputs.audio
    encoder = model.model.audio_tower
    weight = encoder.conv1.weight
    longest = int(frames.max()) + RECEPTIVE_FRAMES
    longest = min(longest + longest % 2, mel.shape[-1])
    x = mel[..., :longest].to(weight.device, weight.dtype)
    x = nn.functional.gelu(encoder.conv1(x))
    x = nn.functional.gelu(encoder.conv2(x)).permute(0, 2, 1)  # (B, T/2, D)
    x = x + encoder.embed_positions.weight[: x.shape[1]].to(x.dtype)
    valid = ((frames - 1) // 2 + 1).to(x.device)
    mask = create_bidirectional_mask(
        config=encoder.config,
        inputs_embeds=x,
        attention_mask=(torch.arange(x.shape[1], device=x.device)[None] < valid[:, None]).long(),
    )
    for layer in encoder.layers:
        x = layer(x, mask)
    x = encoder.avg_pooler(x.permute(0, 2, 1)).permute(0, 2, 1)  # (B, T/4, D)
    x = encoder.layer_norm(x)
    return [row[: pooled(int(n))] for row, n in zip(x, frames, strict=True)]


def project(model: Any, clips: list[Tensor]) -> list[Tensor]:
    """(A, D) of every clip -> (A, H): row by row, so that clips may share one product."""
    import torch

    rows = model.model.multi_modal_projector(torch.cat(clips))
    return list(rows.split([len(clip) for clip in clips]))


def tiny(directory: str, decoder_layers: int, encoder_layers: int, seed: int) -> None:
    """Write a random Qwen2-Audio of under a million parameters with a byte-level tokenizer, for tests."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
    )
    seconds = 4  # window of the tiny model
    text = {
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": decoder_layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
        "max_position_embeddings": 1024, "tie_word_embeddings": False, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    audio = {
        "model_type": "qwen2_audio_encoder", "num_mel_bins": 80, "d_model": 64, "encoder_layers": encoder_layers,
        "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "max_source_positions": seconds * 50,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = Qwen2AudioConfig(
        text_config=text, audio_config=audio, audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    )
    config.tie_word_embeddings = False
    model = Qwen2AudioForConditionalGeneration(config)
    with torch.no_grad():  # the default 0.02 leaves every prediction nearly the same; tests need a lively model
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.normal_(0, 0.15)
    model.save_pretrained(directory)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=seconds)
    Qwen2AudioProcessor(extractor, tokenizer).save_pretrained(directory)


QWEN2_AUDIO = Family(
    model_type="qwen2_audio",
    model_class="Qwen2AudioForConditionalGeneration",
    parts=PARTS,
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
    decoder=Decoder(line="sordino.models.decoder_line:LlamaLine"),
    chat=Chat(
        render=render,
        stop_tokens=("<|im_end|>", "<|endoftext|>"),
        answers_end_with={"chat": "<|im_end|>", "base": "<|endoftext|>"},
        takes_system=True,
        default_system=lambda prompt: prompt.system,
    ),
    tensors=Tensors(
        saved=SAVED,
        fixed=("model.audio_tower.embed_positions",),
        silent=(*LLAMA_SILENT, *WHISPER_SILENT, "model.audio_tower.avg_pooler"),
        tables={
            "audio_tower.": Table(WHISPER_ENCODER, "encoder_layers"),
            "language_model.": Table(causal(LLAMA_TEXT + TEXT_BIASES), "decoder_layers"),
            "multi_modal_projector.": Table("linear.bias H\nlinear.weight H D"),
        },
        fields={
            **WHISPER_FIELDS,
            "D": ("audio_config", "d_model", 1280),
            "F": ("audio_config", "encoder_ffn_dim", 5120),
            "encoder_layers": ("audio_config", "encoder_layers", 32),
            "H": ("text_config", "hidden_size", 4096),
            "I": ("text_config", "intermediate_size", 22016),
            "V": ("text_config", "vocab_size", 151_936),
            "decoder_layers": ("text_config", "num_hidden_layers", 32),
            "heads": ("text_config", "num_attention_heads", 32),
            "kv_heads": ("text_config", "num_key_value_heads", 32),
            "head_dim": ("text_config", "head_dim", 0),
        },
        window_seconds=positions_window,
        gguf=LLAMA_GGUF["qwen2"],
    ),
    load_processor=load_processor,
    tiny=tiny,
    stock_call='inputs = processor(text=prompt, audio=[wave], sampling_rate=rate, return_tensors="pt")',
)
