"""A recipe's prompt as a model sees it: one string for training, ranking and translating."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.config.schema import SYSTEM_PROMPT, PromptSection, fill_instruction
from sordino.models.family import Prompt

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel


def render(speech: SpeechModel, section: PromptSection, source: str, target: str) -> str:
    """The text that is asked, with one audio placeholder. source, target: languages by code or name."""
    example = (section.example[0], section.example[1]) if section.example else None
    system = section.system
    if system == "auto":
        system = SYSTEM_PROMPT if speech.family.chat.takes_system else None
    instruction = fill_instruction(section.instruction, source, target)
    return speech.family.chat.render(speech.processor, Prompt(instruction, system, section.style, example))
