"""Qwen3-ASR: windowed encoder of single seconds, two-layer projector, Qwen3 decoder with a tied head.

A recogniser that users fine-tune into a translator. It takes text in two places only: the system turn (context), and
the beginning of its own answer, `language German<asr_text>`, by which it is told what language to write. An instruction
that ends in `<asr_text>` is put there; any other stands in the system turn. Its chat template drops all other text.

The stock layout is that of the repositories whose names end in -hf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sordino.errors import FamilyError
from sordino.models import processors
from sordino.models.family import Audio, AudioInputs, Chat, Decoder, Family, Prompt, Stack, Table, Tensors
from sordino.models.tables import (
    LLAMA_GGUF,
    LLAMA_SILENT,
    LLAMA_TEXT,
    PARTS,
    TEXT_NORMS,
    WHISPER_LAYERS,
    WHISPER_SILENT,
    normed_heads,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sordino.data.audio import Waveform

SAMPLING_RATE = 16_000  # Hz
HOP = 160  # samples between mel frames
CHUNK_FRAMES, CHUNK_TOKENS = 100, 13  # a second of mel frames, encoded by itself into so many states
SHORTEST = 8_000  # samples; the extractor fills up shorter clips with silence, which the model hears
AUDIO = "<|audio_pad|>"
ANSWER = "<asr_text>"  # behind it the answer's text begins

# As the model's own repositories have it: system texts in one turn, audio in another, everything else is left out.
TEMPLATE = """\
{%- set text = namespace(system='', audio='') -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- if message.role == 'system' -%}{%- set text.system = text.system + message.content -%}{%- endif -%}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'audio' or 'audio' in part or 'audio_url' in part -%}
{%- set text.audio = text.audio + '<|audio_start|><|audio_pad|><|audio_end|>' -%}
{%- elif message.role == 'system' and part.type == 'text' -%}{%- set text.system = text.system + part.text -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{{- '<|im_start|>system\\n' + text.system + '<|im_end|>\\n<|im_start|>user\\n' + text.audio + '<|im_end|>\\n' -}}
{%- for message in messages if message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}{%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def check(config: Mapping[str, Any], path: str) -> None:
    """Raise FamilyError for the layout of the package qwen-asr, and for the aligner."""
    thinker = config.get("thinker_config") or {}
    if "classify_num" in thinker or "ForTokenClassification" in str(config.get("architectures")):
        raise FamilyError(f"{path} is of a forced aligner, which writes no text.", "Use Qwen/Qwen3-ASR-1.7B-hf.")
    if thinker:
        raise FamilyError(
            f"{path} is of Qwen3-ASR in the layout of the package qwen-asr, which transformers does not load.",
            "Use the repository whose name ends in -hf, e.g. Qwen/Qwen3-ASR-1.7B-hf.",
        )


def load_processor(path: str, revision: str | None = None) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(path, revision=revision)


def render(processor: Any, prompt: Prompt) -> str:
    """Prompt text with one audio placeholder; ends where the answer begins.

    Raises FamilyError for the base style and for an example, which the model has no place for.
    """
    if prompt.style == "base":
        raise FamilyError("Qwen3-ASR models answer chats only, and the prompt style is 'base'.", "Use 'chat'.")
    if prompt.example is not None:
        raise FamilyError("Qwen3-ASR models take no example: their chat has no place for a text turn.", "Leave it out.")
    asked = prompt.instruction.endswith(ANSWER)
    turns = [
        {"role": "system", "content": [{"type": "text", "text": context(prompt)}]},
        {"role": "user", "content": [{"type": "audio", "audio": "clip"}]},
    ]
    text: str = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return text + prompt.instruction if asked else text


def context(prompt: Prompt) -> str:
    """What the system turn holds: the system prompt, and the instruction unless the answer begins with it."""
    asked = prompt.instruction.endswith(ANSWER)
    return "\n".join(filter(None, (prompt.system, None if asked else prompt.instruction)))


def prepare(processor: Any, clips: Sequence[Waveform], prompts: Sequence[str]) -> AudioInputs:
    """Waveforms (n,) at 16 kHz and rendered prompts -> ids with expanded placeholders; mel (B, M, T), its mask (B, T).

    Each clip goes through the processor alone: in a batch it counts a frame more for some lengths.
    Raises ValueError for a clip longer than the window.
    """
    import torch

    processors.refuse_long(clips, window(processor))
    outs = [
        processor(text=[prompt], audio=[clip], sampling_rate=SAMPLING_RATE, return_tensors="pt")
        for clip, prompt in zip(clips, prompts, strict=True)
    ]
    longest = max(out["input_features"].shape[-1] for out in outs)

    def padded(name: str) -> Tensor:
        parts = (out[name] for out in outs)
        return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts])

    ids = [out["input_ids"][0].tolist() for out in outs]
    return AudioInputs(ids, (padded("input_features").float(), padded("input_features_mask")))


def window(processor: Any) -> int:
    """Longest clip, in samples: the extractor's chunk_length. The encoder knows no limit; a config may raise it."""
    return int(processor.feature_extractor.n_samples)


def audio_tokens(samples: int) -> int:
    """Samples -> audio tokens: 13 for every second, and of the rest a frame in eight."""
    return encoded(max(samples, SHORTEST) // HOP)


def encoded(frames: int) -> int:
    """Valid mel frames -> audio tokens; each second goes through the convolutions by itself."""
    return frames // CHUNK_FRAMES * CHUNK_TOKENS + halved(frames % CHUNK_FRAMES)


def halved(size: int, times: int = 3) -> int:
    """What so many convolutions of stride 2 leave."""
    for _ in range(times):
        size = (size - 1) // 2 + 1
    return size


def states(model: Any, inputs: AudioInputs) -> list[Tensor]:
    """mel (B, M, T) and its mask (B, T) -> B tensors (A, D), on the model's device and dtype."""
    mel, mask = inputs.audio
    encoder = model.model.audio_tower
    weight = encoder.conv2d1.weight
    rows = encoder(mel.to(weight.device, weight.dtype), mask.to(weight.device)).last_hidden_state
    return list(rows.split([encoded(int(n)) for n in mask.sum(-1)]))


def project(model: Any, clips: list[Tensor]) -> list[Tensor]:
    """(A, D) of every clip -> (A, H): row by row, so that clips may share one product."""
    import torch

    rows = model.model.multi_modal_projector(torch.cat(clips))
    return list(rows.split([len(clip) for clip in clips]))


def tiny(directory: str, decoder_layers: int, encoder_layers: int, seed: int) -> None:
    """Write a random Qwen3-ASR of under a million parameters with a byte-level tokenizer, for tests."""
    import torch
    from transformers import (
        Qwen3ASRConfig,
        Qwen3ASRFeatureExtractor,
        Qwen3ASRForConditionalGeneration,
        Qwen3ASRProcessor,
    )

    from sordino.models.miniature import byte_tokenizer, liven

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", AUDIO]
    named = {"audio_token": AUDIO, "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
    tokenizer = byte_tokenizer(special, "<|im_end|>", "<|endoftext|>", named, plain=[ANSWER, "<timestamp>"])
    text = {
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": decoder_layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": len(tokenizer),
        "max_position_embeddings": 1024, "tie_word_embeddings": True,
    }  # fmt: skip
    audio = {
        "model_type": "qwen3_asr_encoder", "num_mel_bins": 64, "d_model": 64, "encoder_layers": encoder_layers,
        "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "output_dim": 64, "downsample_hidden_size": 8,
        "n_window_infer": 200,
    }  # fmt: skip
    torch.manual_seed(seed)
    end, pad, clip, time = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", AUDIO, "<timestamp>"])
    config = Qwen3ASRConfig(
        text_config=text, audio_config=audio, audio_token_id=clip, timestamp_token_id=time,
        eos_token_id=[pad, end], pad_token_id=end,
    )  # fmt: skip
    model = Qwen3ASRForConditionalGeneration(config)
    liven(model)
    model.save_pretrained(directory)
    extractor = Qwen3ASRFeatureExtractor(feature_size=64, chunk_length=4)
    Qwen3ASRProcessor(extractor, tokenizer, chat_template=TEMPLATE).save_pretrained(directory)


def kept(dims: Mapping[str, int], states: int) -> tuple[float, float]:
    """Of a second: the mel, what each convolution gives before and after its activation, and its last, rearranged."""
    convolved = sum(2 * dims["C"] * halved(dims["M"], times) * halved(CHUNK_FRAMES, times) for times in (1, 2, 3))
    front = (CHUNK_FRAMES * dims["M"] + convolved) / CHUNK_TOKENS + dims["B"]
    return front, 9 * dims["D"] + 2 * dims["F"]


ENCODER = """
conv2d1.bias C
conv2d1.weight C 1 3 3
conv2d2.bias C
conv2d2.weight C C 3 3
conv2d3.bias C
conv2d3.weight C C 3 3
conv_out.weight D B
layers.#.self_attn.k_proj.bias D
ln_post.bias D
ln_post.weight D
"""
PROJECTOR = """
linear_1.bias D
linear_1.weight D D
linear_2.bias G
linear_2.weight G D
"""


QWEN3_ASR = Family(
    model_type="qwen3_asr",
    model_class="Qwen3ASRForConditionalGeneration",
    parts=PARTS,
    stacks={
        "decoder": Stack("model.language_model.layers", "text_config", "num_hidden_layers", ("layer_types",)),
        "encoder": Stack("model.audio_tower.layers", "audio_config", "encoder_layers"),
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
        answers_end_with={"chat": "<|im_end|>"},
        takes_system=True,
        takes_example=False,
        default_system=context,
    ),
    tensors=Tensors(
        saved={},
        silent=(
            *LLAMA_SILENT,
            *WHISPER_SILENT,
            "model.audio_tower.positional_embedding",
            "model.multi_modal_projector.act",
        ),
        tied=True,
        tables={
            "model.audio_tower.": Table(ENCODER + WHISPER_LAYERS, "encoder_layers"),
            "model.multi_modal_projector.": Table(PROJECTOR),
            "model.language_model.": Table(LLAMA_TEXT + TEXT_NORMS, "decoder_layers"),
            "": Table("lm_head.weight V H"),
        },
        fields={
            "M": ("audio_config", "num_mel_bins", 128),
            "D": ("audio_config", "d_model", 1024),
            "F": ("audio_config", "encoder_ffn_dim", 4096),
            "C": ("audio_config", "downsample_hidden_size", 480),
            "G": ("audio_config", "output_dim", 3584),
            "encoder_layers": ("audio_config", "encoder_layers", 24),
            "H": ("text_config", "hidden_size", 2048),
            "I": ("text_config", "intermediate_size", 6144),
            "V": ("text_config", "vocab_size", 151_936),
            "decoder_layers": ("text_config", "num_hidden_layers", 28),
            "heads": ("text_config", "num_attention_heads", 16),
            "kv_heads": ("text_config", "num_key_value_heads", 8),
            "head_dim": ("text_config", "head_dim", 128),
        },
        letters=lambda config, dims: {"B": dims["C"] * halved(dims["M"])},
        states_per_second=13.0,
        states_per_token=1.0,
        kept=kept,
        norm_bytes=normed_heads,
        gguf=LLAMA_GGUF["qwen3"],
    ),
    load_processor=load_processor,
    tiny=tiny,
    stock_call='inputs = processor(text=prompt, audio=[wave], sampling_rate=rate, return_tensors="pt")',
    check=check,
)
