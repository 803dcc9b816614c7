"""Granite Speech: conformer over blocks of 4 s, a Q-Former that makes 3 tokens of every 15 states, Granite decoder.

The encoder knows no padding mask: in a batch a clip hears the silence it is filled up with, so that clips are encoded
one by one. Halfway through its layers it adds what it has recognised so far to its states (self-conditioning); how far
that is follows from the number of layers alone, so that a pruned encoder must keep as many layers below as above.

The stock feature extractor wants torchaudio. `log_mel` is its formula in torch: a periodic Hann window of 400 in frames
of 512 every 160 samples, power, HTK mel filters without norm, log10 within 8 of the clip's highest, two frames a state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.errors import FamilyError
from sordino.models import processors
from sordino.models.family import Audio, AudioInputs, Chat, Decoder, Family, Prompt, Stack
from sordino.models.granite_speech_tensors import TENSORS
from sordino.models.processors import PartProcessor

if TYPE_CHECKING:
    from torch import Tensor

    from sordino.data.audio import Waveform

SAMPLING_RATE = 16_000  # Hz
FRAME, HOP, FFT = 400, 160, 512  # samples
WINDOW_STATES, WINDOW_TOKENS = 15, 3  # of the Q-Former; config.json's window_size, and that over downsample_rate
LONGEST = 30 * SAMPLING_RATE  # samples; the model knows no limit, and its speech corpora are of clips up to this
AUDIO, END = "<|audio|>", "<|end_of_text|>"
PROCESSOR, EXTRACTOR = "GraniteSpeechProcessor", "GraniteSpeechFeatureExtractor"
# what the model's page says where a template would otherwise write today's date into every prompt
DATED = (
    "Knowledge Cutoff Date: April 2024.\nToday's Date: December 19, 2024.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)
TEMPLATE = (  # of 4.0 and 4.1
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {{ message['content'] }}\n ASSISTANT:"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class GraniteProcessor(PartProcessor):
    """mels: bins of the spectrogram."""

    mels: int


def load_processor(path: str, revision: str | None = None) -> GraniteProcessor:
    """Raises FamilyError for another family's processor and for a spectrogram that is none of Granite Speech's."""
    directory = processors.fetched(path, revision)
    named = {"processor_class": PROCESSOR, "feature_extractor_type": EXTRACTOR}
    settings = processors.settings(directory, "audio_processor", named)
    usual = {"n_fft": FFT, "win_length": FRAME, "hop_length": HOP, "sampling_rate": SAMPLING_RATE}
    other = sorted(name for name, value in usual.items() if settings.get(name, value) != value)
    if other:
        raise FamilyError(f"the processor in {path} has {other[0]} {settings[other[0]]} instead of {usual[other[0]]}.")
    return GraniteProcessor(processors.open_tokenizer(directory), directory, int(settings.get("n_mels", 80)))


def check(config: Mapping[str, Any], path: str) -> None:
    """Raise FamilyError for a Q-Former of other windows."""
    window, rate = config.get("window_size", WINDOW_STATES), config.get("downsample_rate", 5)
    if (window, rate) != (WINDOW_STATES, WINDOW_STATES // WINDOW_TOKENS):
        raise FamilyError(f"{path}: windows of {window} states, of which every {rate}th stays, are not supported.")


def render(processor: GraniteProcessor, prompt: Prompt) -> str:
    """Prompt text with one audio placeholder; ends where the answer begins.

    The template is the checkpoint's own, which differs between versions. Raises FamilyError for the base style, and for
    a system prompt that the template leaves out.
    """
    if prompt.style == "base":
        raise FamilyError("Granite Speech models answer chats only, and the prompt style is 'base'.", "Use 'chat'.")
    system = prompt.system
    if system is None and "strftime_now" in str(processor.tokenizer.chat_template):
        system = DATED
    turns = [] if system is None else [{"role": "system", "content": system}]
    if prompt.example is not None:
        sentence, translation = prompt.example
        turns.append({"role": "user", "content": f"{prompt.instruction} {sentence}"})
        turns.append({"role": "assistant", "content": translation})
    turns.append({"role": "user", "content": f"{AUDIO}{prompt.instruction}"})
    text: str = processor.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    if system is not None and system.strip() not in text:
        raise FamilyError(
            "this Granite Speech model's chat has no place for a system prompt.", "Say it in the instruction."
        )
    return text


def prepare(processor: GraniteProcessor, clips: Sequence[Waveform], prompts: Sequence[str]) -> AudioInputs:
    """Waveforms (n,) at 16 kHz and rendered prompts -> ids with expanded placeholders; B tensors (1, N, 2 M).

    Raises ValueError for a clip longer than the window and for a prompt without exactly one audio placeholder.
    """
    processors.refuse_long(clips, LONGEST)
    texts = processors.with_audio(prompts, AUDIO, [audio_tokens(len(clip)) for clip in clips])
    ids = [list(map(int, row)) for row in processor.tokenizer(texts)["input_ids"]]
    return AudioInputs(ids, tuple(log_mel(clip, processor.mels)[None] for clip in clips))


def log_mel(clip: Waveform, mels: int) -> Tensor:
    """(n,) -> (N, 2 M): two frames side by side, an odd last one left out."""
    import torch
    from transformers.audio_utils import mel_filter_bank

    wave = torch.as_tensor(clip, dtype=torch.float32)
    window = torch.hann_window(FRAME)
    spectrum = torch.stft(wave, FFT, HOP, FRAME, window, center=True, pad_mode="reflect", return_complex=True)
    filters = mel_filter_bank(FFT // 2 + 1, mels, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, norm=None, mel_scale="htk")
    power = torch.as_tensor(filters, dtype=torch.float32).T @ spectrum.abs().square()  # (M, T)
    logarithm = power.T.clamp(min=1e-10).log10()
    scaled = torch.maximum(logarithm, logarithm.max() - 8.0) / 4 + 1
    return scaled[: len(scaled) // 2 * 2].reshape(-1, 2 * mels)


def encoder_states(samples: int) -> int:
    """Samples -> encoder states: two mel frames each."""
    return (samples // HOP + 1) // 2


def audio_tokens(samples: int) -> int:
    """Samples -> audio tokens: three of each begun window."""
    return math.ceil(encoder_states(samples) / WINDOW_STATES) * WINDOW_TOKENS


def states(model: Any, inputs: AudioInputs) -> list[Tensor]:
    """B tensors (1, N, 2 M) -> B tensors (N, D), on the model's device and dtype; each by itself."""
    from torch import nn

    encoder = model.model.encoder
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):  # one clip is no batch to take statistics of
            module.eval()
    weight = encoder.input_linear.weight
    return [encoder(mel.to(weight.device, encoder.out.bias.dtype)).last_hidden_state[0] for mel in inputs.audio]


def project(model: Any, clips: list[Tensor]) -> list[Tensor]:
    """(N, D) of every clip -> (A, H). Windows know nothing of each other, so that clips may share one pass."""
    import torch

    windows = [math.ceil(len(clip) / WINDOW_STATES) for clip in clips]
    padded = [
        torch.nn.functional.pad(clip, (0, 0, 0, count * WINDOW_STATES - len(clip)))
        for clip, count in zip(clips, windows, strict=True)
    ]
    rows = model.model.projector(torch.cat(padded)[None])[0]
    return list(rows.split([count * WINDOW_TOKENS for count in windows]))


def logits(model: Any, hidden: Tensor) -> Tensor:
    """(..., H), normed -> (..., V), divided as Granite was trained; transformers' class for speech leaves that out."""
    found: Tensor = model.get_output_embeddings()(hidden)
    return found / scaling(model)


def scaling(model: Any) -> float:
    return float(model.config.text_config.logits_scaling)


def halves(config: Any, keep: Sequence[int]) -> str:
    """Why these encoder layers cannot stay alone: what is recognised halfway would be fed back elsewhere."""
    middle, count = config.num_layers // 2, len(keep)
    below = sum(index < middle for index in keep)
    if below == count // 2:
        return ""
    return (
        f"layers 0 to {middle - 1} of its encoder come before the feedback of its middle, and of {count} layers the "
        f"first {count // 2} would, not these {below}"
    )


def tiny(directory: str, decoder_layers: int, encoder_layers: int, seed: int) -> None:
    """Write a random Granite Speech of under a million parameters with a byte-level tokenizer, for tests."""
    import torch
    from transformers import GraniteSpeechConfig, GraniteSpeechForConditionalGeneration

    from sordino.models.miniature import byte_tokenizer, liven

    tokenizer = byte_tokenizer([END, "<|pad|>", AUDIO], END, "<|pad|>")
    tokenizer.chat_template = TEMPLATE
    end, pad, audio = tokenizer.convert_tokens_to_ids([END, "<|pad|>", AUDIO])
    text = {
        "model_type": "granite", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": decoder_layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024, "tie_word_embeddings": False, "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7, "attention_multiplier": 0.2, "logits_scaling": 2.0,
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": pad,
    }  # fmt: skip
    encoder = {
        "model_type": "granite_speech_encoder", "input_dim": 128, "num_layers": encoder_layers, "hidden_dim": 64,
        "feedforward_mult": 2, "num_heads": 4, "dim_head": 16, "output_dim": 64, "context_size": 40, "max_pos_emb": 64,
        "conv_kernel_size": 7, "conv_expansion_factor": 2,
    }  # fmt: skip
    projector = {
        "model_type": "blip_2_qformer", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "encoder_hidden_size": 64, "cross_attention_frequency": 1,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = GraniteSpeechConfig(
        text_config=text, encoder_config=encoder, projector_config=projector, audio_token_index=audio,
        has_lora_adapter=False, tie_word_embeddings=False,
    )  # fmt: skip
    model = GraniteSpeechForConditionalGeneration(config)
    liven(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    extractor = {
        "feature_extractor_type": EXTRACTOR, "processor_class": PROCESSOR, "n_fft": FFT, "win_length": FRAME,
        "hop_length": HOP, "n_mels": 64, "sampling_rate": SAMPLING_RATE, "projector_window_size": WINDOW_STATES,
        "projector_downsample_rate": WINDOW_STATES // WINDOW_TOKENS,
    }  # fmt: skip
    (Path(directory) / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2), encoding="utf-8")


GRANITE_SPEECH = Family(
    model_type="granite_speech",
    model_class="GraniteSpeechForConditionalGeneration",
    parts={
        "encoder": "model.encoder",
        "projector": "model.projector",
        "decoder": "model.language_model",
        "embeddings": "model.language_model.embed_tokens",
        "head": "lm_head",
    },
    stacks={
        "decoder": Stack("model.language_model.layers", "text_config", "num_hidden_layers"),
        "encoder": Stack("model.encoder.layers", "encoder_config", "num_layers", fits=halves, counted="num_layers"),
    },
    audio=Audio(
        placeholder=lambda config: int(config.audio_token_index),
        prepare=prepare,
        states=states,
        project=project,
        tokens=audio_tokens,
        window=lambda processor: LONGEST,
    ),
    decoder=Decoder(line="sordino.models.decoder_line:GraniteLine", logits=logits, scaling=scaling),
    chat=Chat(render=render, stop_tokens=(END,), answers_end_with={"chat": END}, takes_system=False),
    tensors=TENSORS,
    load_processor=load_processor,
    tiny=tiny,
    check=check,
    adapter_flag="has_lora_adapter",
)
