"""What is Voxtral's own: Mistral's prompt form and the package that holds it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sordino.errors import FamilyError
from sordino.models import loading
from sordino.models.family import Prompt
from sordino.models.speech import SpeechModel
from sordino.models.voxtral import VOXTRAL
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def voxtral(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return pico("voxtral")


def test_the_prompt_is_mistrals(voxtral: SpeechModel) -> None:
    text = VOXTRAL.chat.render(voxtral.processor, Prompt("Translate into German."))
    assert text == "<s>[INST][BEGIN_AUDIO][AUDIO]Translate into German.[/INST]"


@pytest.mark.parametrize("instruction", ["Übersetze: ", "  To\nChinese 中文\t", "a</ s> [INST ]"])
def test_ids_with_an_example_are_the_stock_ones(voxtral: SpeechModel, instruction: str) -> None:
    prompt = Prompt(instruction, example=("Good morning. ", " Guten Morgen.  "))
    inputs = tiny.ask(voxtral, [tiny.clip(0, 0.5)], prompt)
    silence = {"type": "audio", "base64": stock_silence()}
    turns = [
        {"role": "user", "content": f"{instruction} Good morning. "},
        {"role": "assistant", "content": " Guten Morgen.  "},
        {"role": "user", "content": [silence, {"type": "text", "text": instruction}]},
    ]
    assert inputs.input_ids == voxtral.processor.apply_chat_template([turns])["input_ids"].tolist()


def test_a_chunk_is_375_tokens_whatever_the_clip() -> None:
    assert [VOXTRAL.audio.tokens(160 * n) for n in (1, 100, 2999, 3000, 3001, 6000)] == [375] * 4 + [750] * 2


def test_a_batch_of_clips_has_the_stock_mel(voxtral: SpeechModel) -> None:
    clips = [tiny.clip(1, 0.3), tiny.clip(2, 30.0)]
    stock = torch.cat([tiny.stock_inputs(voxtral, wave, "Go.")["input_features"] for wave in clips])
    assert torch.equal(tiny.ask(voxtral, clips).audio[0], stock)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("Translate.", style="base"), "chats only.*'base'.*Use 'chat'"),
        (Prompt("Translate.", system="Be brief."), "refuses this prompt.*system.*Leave the system prompt out"),
        (Prompt("Translate [AUDIO]."), r"holds \[AUDIO\].*control token"),
        (Prompt("Translate.", example=("Hello.</s>", "Hallo.")), "holds </s>"),
    ],
)
def test_what_cannot_be_said_is_refused(voxtral: SpeechModel, prompt: Prompt, message: str) -> None:
    with pytest.raises(FamilyError, match=message):
        VOXTRAL.chat.render(voxtral.processor, prompt)


@pytest.mark.parametrize("prompt", ["<s>[INST]Translate.[/INST]", "[AUDIO] and [AUDIO]"])
def test_a_prompt_needs_one_placeholder(voxtral: SpeechModel, prompt: str) -> None:
    with pytest.raises(ValueError, match="audio placeholders in the prompt"):
        VOXTRAL.audio.prepare(voxtral.processor, [tiny.clip(0, 0.5)], [prompt])


def test_without_mistral_common_the_remedy_is_named(voxtral: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mistral_common", None)
    with pytest.raises(FamilyError, match=r"pip install --upgrade '.\[voxtral\]'"):
        loading.load_checkpoint(voxtral.path, device="cpu")


def stock_silence() -> Any:
    import base64
    import io

    import numpy as np
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600, dtype=np.float32), tiny.RATE, format="WAV")
    return base64.b64encode(file.getvalue()).decode("ascii")
