"""What is Qwen3-ASR's own: two places for text, and seconds that are encoded by themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sordino.errors import FamilyError
from sordino.models import registry
from sordino.models.family import Prompt
from sordino.models.qwen3_asr import QWEN3_ASR
from sordino.models.speech import SpeechModel
from tests import tiny


@pytest.fixture
def asr(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return pico("qwen3_asr")


def test_a_language_is_forced_as_the_stock_processor_forces_it(asr: SpeechModel) -> None:
    wave = tiny.clip(1, 0.8)
    stock = asr.processor.apply_transcription_request(wave, language="de", prompt="Köln, 你好", tokenize=False)
    assert [QWEN3_ASR.chat.render(asr.processor, Prompt("language German<asr_text>", "Köln, 你好"))] == stock
    assert stock[0].endswith("<|im_start|>assistant\nlanguage German<asr_text>")


def test_any_other_instruction_is_context(asr: SpeechModel) -> None:
    text = QWEN3_ASR.chat.render(asr.processor, Prompt("Translate into German:", "Be brief."))
    assert text == (
        "<|im_start|>system\nBe brief.\nTranslate into German:<|im_end|>\n"
        "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("Go.", style="base"), "chats only.*'base'.*Use 'chat'"),
        (Prompt("Go.", example=("Hello.", "Hallo.")), "no example"),
    ],
)
def test_what_cannot_be_said_is_refused(asr: SpeechModel, prompt: Prompt, message: str) -> None:
    with pytest.raises(FamilyError, match=message):
        QWEN3_ASR.chat.render(asr.processor, prompt)


@pytest.mark.parametrize("samples", [1, 1_600, 7_999, 8_000])
def test_clips_under_half_a_second_are_filled_up_and_heard_so(asr: SpeechModel, samples: int) -> None:
    inputs = tiny.ask(asr, [tiny.clip(0, 1.0)[:samples]])
    mel, mask = inputs.audio
    assert mel.shape[-1] == mask.shape[-1] == 100
    assert int(mask.sum()) == 50
    assert inputs.input_ids[0].count(asr.placeholder_id()) == QWEN3_ASR.audio.tokens(samples) == 7


def test_a_clip_counts_the_same_tokens_in_any_batch(asr: SpeechModel) -> None:
    """The stock extractor counts a frame more for 16,100 samples beside a longer clip: 14 tokens instead of 13."""
    waves = [tiny.clip(1, 2.0)[:16_100], tiny.clip(2, 3.3)]
    inputs = tiny.ask(asr, waves)
    counts = [ids.count(asr.placeholder_id()) for ids in inputs.input_ids]
    assert counts == [13, QWEN3_ASR.audio.tokens(len(waves[1]))]
    together, alone = asr.states(inputs), [asr.states(tiny.ask(asr, [wave]))[0] for wave in waves]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"thinker_config": {"audio_config": {}}}, "layout of the package qwen-asr.*ends in -hf"),
        ({"thinker_config": {"classify_num": 5000}}, "forced aligner"),
        ({"architectures": ["Qwen3ASRForTokenClassification"]}, "forced aligner"),
    ],
)
def test_other_layouts_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(FamilyError, match=message):
        registry.of_config({"model_type": "qwen3_asr", **config}, "model/config.json")
