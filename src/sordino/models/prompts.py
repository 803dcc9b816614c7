"""A recipe's prompt as a model sees it: one string for training, ranking and translating."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sordino.config.schema import SYSTEM_PROMPT, PromptSection, fill_instruction
from sordino.errors import RecipeError
from sordino.models.control_tokens import control_tokens
from sordino.models.family import Prompt
from sordino.runtime.terminal import quoted

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel


def render(speech: SpeechModel, section: PromptSection, source: str, target: str) -> str:
    """The text that is asked, with one audio placeholder. source, target: languages by code or name.

    Raises RecipeError as `refuse_control_tokens` does.
    """
    refuse_control_tokens(section, speech.processor.tokenizer)
    example = (section.example[0], section.example[1]) if section.example else None
    system = section.system
    if system == "auto":
        system = SYSTEM_PROMPT if speech.family.chat.takes_system else None
    instruction = fill_instruction(section.instruction, source, target)
    return speech.family.chat.render(speech.processor, Prompt(instruction, system, section.style, example))


def refuse_control_tokens(section: PromptSection, tokenizer: Any) -> None:
    """Raise RecipeError for a prompt whose words the tokenizer would take for its own: another audio, the end."""
    texts = {"instruction": section.instruction, "system": section.system or ""}
    texts |= {f"example[{i}]": text for i, text in enumerate(section.example)}
    for key, text in texts.items():
        tokens = control_tokens(tokenizer, text)
        if tokens:
            raise RecipeError(
                f"prompt.{key} holds {quoted(tokens[0], 60)}, which this model's tokenizer takes for a control token.",
                "Leave it out: the audio and the turns are put into the prompt by the model's family.",
            )
