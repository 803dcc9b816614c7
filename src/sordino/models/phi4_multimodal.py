"""Phi-4-multimodal in transformers' layout: conformer of eight frames a state, projector of two layers, Phi decoder.

The decoder is Phi-4-mini, which hears through a LoRA of its own that lies in `speech-lora` beside the weights: without
it the model does not translate, so that it is merged wherever weights are read. What is written says so in config.json,
a field of ours that transformers passes over. The LoRA for pictures is left aside, and the part that sees stays as it
is: the class cannot be made without, and nothing trains or adapts it.

The encoder does not shut out padding (its mask is added as 1 and 0), so that clips are encoded one by one. Positions
beyond 4,096 get other rotary factors; a clip of 30 s is 375 tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.errors import FamilyError
from sordino.models import processors
from sordino.models.family import Audio, AudioInputs, Chat, Decoder, Family, Prompt, Stack
from sordino.models.phi4_multimodal_tensors import HEARING, TENSORS
from sordino.models.processors import PartProcessor

if TYPE_CHECKING:
    from torch import Tensor

    from sordino.data.audio import Waveform

SAMPLING_RATE = 16_000  # Hz
FRAME, HOP = 400, 160  # samples
FRAMES_PER_TOKEN = 8
LONGEST = 30 * SAMPLING_RATE  # samples; the encoder knows no limit, and cuts what is longer than 40 s into windows
ROTARY_SWITCH = 4096  # positions, from which on the rotary factors are others
AUDIO, TURN_END, END = "<|audio|>", "<|end|>", "<|endoftext|>"
PROCESSOR, EXTRACTOR = "Phi4MultimodalProcessor", "Phi4MultimodalFeatureExtractor"
ADAPTER_FOLDER = "speech-lora"
# as published, but for tools
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Phi4Processor(PartProcessor):
    feature_extractor: Any

    @property
    def audio_token(self) -> str:
        """What stands for a clip; by its published name where the tokenizer does not say."""
        return str(getattr(self.tokenizer, "audio_token", AUDIO))


def load_processor(path: str, revision: str | None = None) -> Phi4Processor:
    """Raises FamilyError for another family's processor."""
    from transformers import Phi4MultimodalFeatureExtractor

    directory = processors.fetched(path, revision)
    named = {"processor_class": PROCESSOR, "feature_extractor_type": EXTRACTOR}
    settings = processors.settings(directory, "audio_processor", named)
    usual = {"win_length": FRAME, "hop_length": HOP, "sampling_rate": SAMPLING_RATE}
    other = sorted(name for name, value in usual.items() if settings.get(name, value) != value)
    if other:
        raise FamilyError(f"the processor in {path} has {other[0]} {settings[other[0]]} instead of {usual[other[0]]}.")
    extractor = Phi4MultimodalFeatureExtractor.from_dict(settings)
    return Phi4Processor(processors.open_tokenizer(directory), directory, extractor)


def check(config: Mapping[str, Any], path: str) -> None:
    """Raise FamilyError for an encoder of other rates, or one that hears in chunks, which are drawn anew in training;
    and for a decoder that does not look back far enough."""
    audio = config.get("audio_config") or {}
    usual = {"time_reduction": FRAMES_PER_TOKEN, "downsample_rate": 1, "chunk_size": -1}
    for name, value in usual.items():
        if audio.get(name, value) != value:
            raise FamilyError(f"{path}: audio_config.{name} {audio[name]} is not supported, only {value}.")
    if (config.get("sliding_window") or ROTARY_SWITCH) < ROTARY_SWITCH:
        raise FamilyError(f"{path}: sliding_window below {ROTARY_SWITCH} is not supported.")


def render(processor: Phi4Processor, prompt: Prompt) -> str:
    """Prompt text with one audio placeholder; ends where the answer begins."""
    asked = f"{processor.audio_token}{prompt.instruction}"
    if prompt.style == "base":
        before = f"{prompt.example[0]}\n{prompt.example[1]}\n" if prompt.example else ""
        return f"{before}{asked}"
    turns = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    if prompt.example is not None:
        sentence, translation = prompt.example
        turns.append({"role": "user", "content": f"{prompt.instruction} {sentence}"})
        turns.append({"role": "assistant", "content": translation})
    turns.append({"role": "user", "content": asked})
    text: str = processor.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return text


def prepare(processor: Phi4Processor, clips: Sequence[Waveform], prompts: Sequence[str]) -> AudioInputs:
    """Waveforms (n,) at 16 kHz and rendered prompts -> ids with expanded placeholders; B tensors (1, T, M).

    A clip shorter than a frame is filled up with silence.
    Raises ValueError for a clip longer than the window and for a prompt without exactly one audio placeholder.
    """
    import numpy as np

    processors.refuse_long(clips, LONGEST)
    texts = processors.with_audio(prompts, processor.audio_token, [audio_tokens(len(clip)) for clip in clips])
    mels = []
    for clip in clips:
        whole = np.pad(clip, (0, max(0, FRAME - len(clip))))
        out = processor.feature_extractor([whole], sampling_rate=SAMPLING_RATE, return_tensors="pt")
        mels.append(out["audio_input_features"].float())
    ids = [list(map(int, row)) for row in processor.tokenizer(texts)["input_ids"]]
    return AudioInputs(ids, tuple(mels))


def audio_tokens(samples: int) -> int:
    """Samples -> audio tokens: eight whole mel frames each."""
    return -(-((max(samples, FRAME) - FRAME) // HOP + 1) // FRAMES_PER_TOKEN)


def states(model: Any, inputs: AudioInputs) -> list[Tensor]:
    """B tensors (1, T, M) -> B tensors (A, D), on the model's device and dtype; each by itself."""
    encoder = model.get_submodule(f"{HEARING}.encoder")
    bias = encoder.embed.out.bias  # the weight may be packed
    return [encoder(mel.to(bias.device, bias.dtype), None)[0] for mel in inputs.audio]


def project(model: Any, clips: list[Tensor]) -> list[Tensor]:
    """(A, D) of every clip -> (A, H): row by row, so that clips may share one product."""
    import torch

    hearing = model.get_submodule(HEARING)
    rows = torch.nn.functional.gelu(hearing.up_proj_for_speech(torch.cat(clips)))
    return list(hearing.down_proj_for_speech(rows).split([len(clip) for clip in clips]))


def tiny(directory: str, decoder_layers: int, encoder_layers: int, seed: int) -> None:
    """Write a random Phi-4-multimodal of under a million parameters with a byte-level tokenizer, for tests."""
    import torch
    from transformers import (
        Phi4MultimodalAudioConfig,
        Phi4MultimodalConfig,
        Phi4MultimodalFeatureExtractor,
        Phi4MultimodalForCausalLM,
        Phi4MultimodalVisionConfig,
    )

    from sordino.models.miniature import byte_tokenizer, liven

    special = [END, TURN_END, "<|user|>", "<|assistant|>", "<|system|>", AUDIO, "<|image|>"]
    named = {"audio_token": AUDIO, "image_token": "<|image|>"}
    tokenizer = byte_tokenizer(special, END, END, named)
    tokenizer.chat_template = TEMPLATE
    end, audio, image, turn = tokenizer.convert_tokens_to_ids([END, AUDIO, "<|image|>", TURN_END])
    hearing = Phi4MultimodalAudioConfig(
        hidden_size=64, intermediate_size=64, num_blocks=encoder_layers, num_attention_heads=4, input_size=80,
        ext_pw_out_channel=64, depthwise_separable_out_channel=64, bias_max_distance=40, nemo_conv_channels=32,
        audio_token_id=audio, nemo_activation="relu",
    )  # fmt: skip
    # its head is attention of torch's own, in which the values' size is that of the queries
    seeing = Phi4MultimodalVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14,
        crop_size=28, image_token_id=image,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = Phi4MultimodalConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=decoder_layers,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, sliding_window=262_144,
        bos_token_id=end, eos_token_id=[end, turn], pad_token_id=end, audio_config=hearing, vision_config=seeing,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0 + i / 8 for i in range(6)], "long_factor": [2.0 + i for i in range(6)],
        },
    )  # fmt: skip
    model = Phi4MultimodalForCausalLM(config)
    liven(model)
    model.config.has_lora_adapter = False
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    extractor = Phi4MultimodalFeatureExtractor().to_dict() | {"processor_class": PROCESSOR}
    extractor.pop("mel_filters", None)
    (Path(directory) / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2), encoding="utf-8")


PHI4_MULTIMODAL = Family(
    model_type="phi4_multimodal",
    model_class="Phi4MultimodalForCausalLM",
    parts={
        "encoder": f"{HEARING}.encoder",
        "projector": HEARING,
        "decoder": "model",
        "embeddings": "model.embed_tokens",
        "head": "lm_head",
    },
    stacks={
        "decoder": Stack("model.layers", "", "num_hidden_layers"),
        "encoder": Stack(f"{HEARING}.encoder.encoders", "audio_config", "num_blocks"),
    },
    audio=Audio(
        placeholder=lambda config: int(config.audio_config.audio_token_id),
        prepare=prepare,
        states=states,
        project=project,
        tokens=audio_tokens,
        window=lambda processor: LONGEST,
    ),
    decoder=Decoder(line="sordino.models.decoder_line:PhiLine"),
    chat=Chat(
        render=render,
        stop_tokens=(TURN_END, END),
        answers_end_with={"chat": TURN_END, "base": END},
        takes_system=True,
        default_system=lambda prompt: prompt.system,
    ),
    tensors=TENSORS,
    load_processor=load_processor,
    tiny=tiny,
    check=check,
    adapter_flag="has_lora_adapter",
    adapter_folder=ADAPTER_FOLDER,
)
