"""Pico models through the real entry points, seconds-long synthetic clips, and the few things tests ask of them.

A model here is random but lively: weights of 0.15 make predictions differ, so that a wrong layer, mask or clip
shows. Logits are taken through the project's own path (states -> project -> embed) unless a name says `stock`.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from torch import Tensor

from sordino.data.audio import Waveform
from sordino.models import registry
from sordino.models.answers import AnswerBatch, SpeechLM
from sordino.models.family import AudioInputs, Prompt, Scope
from sordino.models.speech import SpeechModel, pad_left
from sordino.pruning.layers import sizes
from sordino.training.objectives import cross_entropy
from tests.models.torchaudio_formula import stock_extractor

RATE = 16_000  # Hz
QUESTION = Prompt("Translate into German.")
DECODER_LAYERS, ENCODER_LAYERS = 4, 3
MEL_TOLERANCE = {"granite_speech": 1e-5}  # its stock features are torchaudio's, which rounds its filters otherwise


def clip(seed: int, seconds: float) -> Waveform:
    """A gliding tone with overtones and some noise: nothing like speech, but no two seeds sound alike."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = rng.uniform(90, 300) + rng.uniform(-40, 40) * np.sin(2 * np.pi * rng.uniform(0.5, 3) * time)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tone = sum(rng.uniform(0.05, 0.3) * np.sin(k * phase) for k in range(1, 6))
    return np.asarray(tone + 0.01 * rng.standard_normal(len(time)), dtype=np.float32)


def fresh(speech: SpeechModel) -> SpeechModel:
    """A copy whose weights and configs can be changed."""
    return dataclasses.replace(speech, model=copy.deepcopy(speech.model))


def is_tied(speech: SpeechModel) -> bool:
    """Whether head and embedding are one tensor."""
    return speech.model.get_output_embeddings().weight is speech.model.get_input_embeddings().weight


def stock(speech: SpeechModel, directory: Any, **options: Any) -> SpeechModel:
    """What stock `from_pretrained` makes of a directory, on the CPU, also where bitsandbytes finds a GPU."""
    model_class = getattr(transformers, speech.family.model_class)
    model = model_class.from_pretrained(str(directory), device_map="cpu", **options).eval()
    for module in model.modules():  # a fault of bitsandbytes on some processors, see nf4.set_compute_dtype
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return dataclasses.replace(speech, model=model)


def recount(directory: Any, scope: Scope, counted: Sequence[int]) -> None:
    """Let config.json count other layers than the weights are of, each as the layer of this index was."""
    family = registry.family_of(str(directory))
    config = getattr(transformers, family.model_class).config_class.from_pretrained(directory)
    stack = family.stacks[scope]
    for name, value in sizes(stack, registry.sub_config(config, stack.config), counted).items():
        setattr(registry.sub_config(config, stack.config), name, value)
    config.save_pretrained(directory)


def ask(speech: SpeechModel, clips: Sequence[Waveform], prompt: Prompt = QUESTION) -> AudioInputs:
    text = speech.family.chat.render(speech.processor, prompt)
    return speech.family.audio.prepare(speech.processor, clips, [text] * len(clips))


def features(speech: SpeechModel, inputs: AudioInputs) -> list[Tensor]:
    """(A, H) of every clip."""
    return speech.project(speech.states(inputs))


def embedded(
    speech: SpeechModel, audio: AudioInputs, answers: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Left-padded embeddings, mask and what else the model wants; `answers` are appended to the prompts."""
    rows = [[*ids, *(answers[i] if answers else [])] for i, ids in enumerate(audio.input_ids)]
    ids, mask = pad_left(rows, speech.pad_id(), speech.device)
    among = torch.ones_like(mask, dtype=torch.bool)
    for row, answer in enumerate(answers or ()):
        among[row, len(among[row]) - len(answer) :] = False  # an answer may hold the placeholder as a token
    return speech.inputs(ids, mask, features(speech, audio), among)


@torch.no_grad()
def logits(speech: SpeechModel, inputs: AudioInputs) -> Tensor:
    """(B, S, V), left-padded."""
    out: Tensor = speech.model(**embedded(speech, inputs), use_cache=False).logits
    return out


@torch.no_grad()
def greedy(speech: SpeechModel, inputs: AudioInputs, tokens: int) -> tuple[Tensor, Tensor]:
    """Ids (B, tokens) and their logits (B, tokens, V), of generation with a cache."""
    out = speech.model.generate(
        **embedded(speech, inputs),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences, torch.stack(out.logits, dim=1)


@torch.no_grad()
def forced(speech: SpeechModel, inputs: AudioInputs, ids: Tensor) -> Tensor:
    """Logits (B, tokens, V) that choose the ids (B, tokens), of one pass without a cache."""
    out: Tensor = speech.model(**embedded(speech, inputs, ids.tolist()), use_cache=False).logits
    return out[:, -ids.shape[1] - 1 : -1]


def stir(speech: SpeechModel) -> None:
    """Give an adapter an effect, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in speech.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def stock_inputs(speech: SpeechModel, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    """What the stock processor, called as its documentation says, gives the model for one clip."""
    return _STOCK_INPUTS[speech.family.model_type](speech.processor, wave, instruction)


def _qwen2_audio(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    content = [{"type": "audio", "audio_url": "clip"}, {"type": "text", "text": instruction}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return dict(processor(text=text, audio=[wave], sampling_rate=RATE, return_tensors="pt"))


def _audioflamingo3(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    return dict(processor.apply_transcription_request(wave, prompt=instruction, sampling_rate=RATE))


def _voxtral(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="WAV", subtype="FLOAT")
    audio = "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    content = [{"type": "audio", "base64": audio}, {"type": "text", "text": instruction}]
    return dict(processor.apply_chat_template([[{"role": "user", "content": content}]]))


def _qwen3_asr(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    return dict(processor.apply_transcription_request(wave, prompt=instruction, sampling_rate=RATE))


def _gemma4_unified(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    from transformers.models.gemma4_unified.processing_gemma4_unified import Gemma4UnifiedProcessor

    return _gemma(Gemma4UnifiedProcessor, processor, wave, instruction)


def _gemma4(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

    return _gemma(Gemma4Processor, processor, wave, instruction)


def _gemma(kind: Any, processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    class WithoutPictures(kind):  # type: ignore[misc]  # their processors want torchvision
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
            pass

    tokenizer = processor.tokenizer
    stock = WithoutPictures(processor.feature_extractor, None, tokenizer, None, chat_template=tokenizer.chat_template)
    content = [{"type": "text", "text": instruction}, {"type": "audio", "audio": wave}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return dict(stock.apply_chat_template([{"role": "user", "content": content}], enable_thinking=False, **options))


def _granite_speech(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": f"<|audio|>{instruction}"}], tokenize=False, add_generation_prompt=True
    )
    stock = transformers.GraniteSpeechProcessor(stock_extractor(processor.mels), processor.tokenizer)
    return dict(stock(text, torch.from_numpy(wave)[None], return_tensors="pt"))


def _phi4_multimodal(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    from transformers.models.phi4_multimodal.processing_phi4_multimodal import Phi4MultimodalProcessor

    class WithoutPictures(Phi4MultimodalProcessor):  # their processors want torchvision
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
            pass

    stock = WithoutPictures(None, processor.feature_extractor, processor.tokenizer)
    text = f"<|user|><|audio|>{instruction}<|end|><|assistant|>"
    return dict(stock(text=text, audio=[wave], sampling_rate=RATE, return_tensors="pt"))


def _qwen2_5_omni(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

    class WithoutPictures(Qwen2_5OmniProcessor):  # their processors want torchvision
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
            pass

    tokenizer = processor.tokenizer
    stock = WithoutPictures(None, None, processor.feature_extractor, tokenizer, chat_template=tokenizer.chat_template)
    content = [{"type": "audio", "audio": wave}, {"type": "text", "text": instruction}]
    turns = [{"role": "user", "content": content}]
    text = stock.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return dict(stock(text=text, audio=[wave], sampling_rate=RATE, return_tensors="pt"))


_STOCK_INPUTS = {
    "audioflamingo3": _audioflamingo3,
    "gemma4": _gemma4,
    "gemma4_unified": _gemma4_unified,
    "granite_speech": _granite_speech,
    "phi4_multimodal": _phi4_multimodal,
    "qwen2_audio": _qwen2_audio,
    "qwen2_5_omni": _qwen2_5_omni,
    "qwen3_asr": _qwen3_asr,
    "voxtral": _voxtral,
}


def answer_loss(speech: SpeechModel, batch: AnswerBatch) -> tuple[Tensor, int]:
    """Sum of the cross-entropy at the answer positions, and their number."""
    return cross_entropy(SpeechLM(speech)(batch), batch.targets), batch.tokens
