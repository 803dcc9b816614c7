"""Audio Flamingo 3: Qwen2-Audio's encoder, a projector of two layers, Qwen2 decoder.

NVIDIA publishes the weights for non-commercial use only. Longer clips than one window of 30 s, which the stock
processor cuts into several, are not taken: a translation needs no more than a sentence at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sordino.models import processors
from sordino.models.family import Audio, AudioInputs, Chat, Decoder, Family, Prompt, Stack, Table, Tensors
from sordino.models.qwen2_audio import SAMPLING_RATE, audio_tokens, load_processor, project, states, window
from sordino.models.tables import (
    LLAMA_GGUF,
    LLAMA_TEXT,
    PARTS,
    SAVED,
    TEXT_BIASES,
    WHISPER_ENCODER,
    WHISPER_FIELDS,
    causal,
    positions_window,
)

if TYPE_CHECKING:
    from sordino.data.audio import Waveform

AUDIO = "<sound>"

# In short what the published template says to texts and audio, which it puts before its turn's texts.
TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'audio' -%}{{- '<sound>' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


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
        turns.append({"role": "user", "content": f"{prompt.instruction} {sentence}"})
        turns.append({"role": "assistant", "content": translation})
    question = [{"type": "text", "text": prompt.instruction}, {"type": "audio", "path": "clip"}]
    turns.append({"role": "user", "content": question})
    text: str = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return text


def prepare(processor: Any, clips: Sequence[Waveform], prompts: Sequence[str]) -> AudioInputs:
    """Waveforms (n,) at 16 kHz and rendered prompts -> ids with expanded placeholders; mel (B, M, T) and frames (B,).

    Raises ValueError for a clip longer than the window.
    """
    processors.refuse_long(clips, window(processor))
    out = processor(text=list(prompts), audio=list(clips), sampling_rate=SAMPLING_RATE)
    ids = [row[mask.bool()].tolist() for row, mask in zip(out["input_ids"], out["attention_mask"], strict=True)]
    return AudioInputs(ids, (out["input_features"].float(), out["input_features_mask"].sum(-1)))


def tiny(directory: str, decoder_layers: int, encoder_layers: int, seed: int) -> None:
    """Write a random Audio Flamingo 3 of under a million parameters with a byte-level tokenizer, for tests."""
    import torch
    from transformers import (
        AudioFlamingo3Config,
        AudioFlamingo3ForConditionalGeneration,
        AudioFlamingo3Processor,
        WhisperFeatureExtractor,
    )

    from sordino.models.miniature import byte_tokenizer, liven

    tokenizer = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", AUDIO], "<|im_end|>", "<|endoftext|>")
    end, pad, clip = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", AUDIO])
    text = {
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": decoder_layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
        "max_position_embeddings": 1024, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": end,
        "pad_token_id": pad,
    }  # fmt: skip
    audio = {
        "model_type": "audioflamingo3_encoder", "num_mel_bins": 80, "hidden_size": 64,
        "num_hidden_layers": encoder_layers, "num_attention_heads": 4, "intermediate_size": 128,
        "max_source_positions": 200,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = AudioFlamingo3Config(text_config=text, audio_config=audio, audio_token_id=clip)
    config.tie_word_embeddings = False
    model = AudioFlamingo3ForConditionalGeneration(config)
    liven(model)
    model.save_pretrained(directory)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=4, return_attention_mask=True)
    AudioFlamingo3Processor(extractor, tokenizer, chat_template=TEMPLATE).save_pretrained(directory)


PROJECTOR = """
linear_1.bias H
linear_1.weight H D
linear_2.bias H
linear_2.weight H H
"""


AUDIOFLAMINGO3 = Family(
    model_type="audioflamingo3",
    model_class="AudioFlamingo3ForConditionalGeneration",
    parts=PARTS,
    stacks={
        "decoder": Stack("model.language_model.layers", "text_config", "num_hidden_layers", ("layer_types",)),
        "encoder": Stack("model.audio_tower.layers", "audio_config", "num_hidden_layers"),
    },
    audio=Audio(
        placeholder=lambda config: int(config.audio_token_id),
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
        tables={
            "audio_tower.": Table(WHISPER_ENCODER, "encoder_layers"),
            "language_model.": Table(causal(LLAMA_TEXT + TEXT_BIASES), "decoder_layers"),
            "multi_modal_projector.": Table(PROJECTOR),
        },
        fields={
            **WHISPER_FIELDS,
            "D": ("audio_config", "hidden_size", 1280),
            "F": ("audio_config", "intermediate_size", 5120),
            "encoder_layers": ("audio_config", "num_hidden_layers", 32),
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
)
