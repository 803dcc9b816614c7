"""Training examples of the pico model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.data import sounds

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel
    from sordino.training.collate import Example

ANSWERS = ("Guten Tag.", "Ja", "Der Zug ist zu spät.", "Brot", "Das Fenster ist offen.", "Nein, danke.")
FAMILY = "qwen2_audio"


@pytest.fixture(scope="session")
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    """Shared by all tests: take `tiny.fresh` to change it."""
    return pico(FAMILY)


@pytest.fixture(scope="session")
def prompt(speech: SpeechModel) -> str:
    from tests.tiny import QUESTION

    return speech.family.chat.render(speech.processor, QUESTION)


@pytest.fixture(scope="session")
def pairs(speech: SpeechModel, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Six clips of different lengths with their answers, not encoded beforehand."""
    from sordino.training.collate import Example
    from tests.tiny import clip

    folder: Path = tmp_path_factory.mktemp("sounds")
    found = []
    for i, text in enumerate(ANSWERS):
        seconds = 0.3 + 0.13 * i
        file = sounds.save(folder / f"{i}.wav", clip(i, seconds), subtype="FLOAT")
        found.append(Example(sounds.clip(f"c{i}", file, seconds=seconds), speech.answer_ids(text)))
    return found
