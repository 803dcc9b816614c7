"""A recipe's prompt as a model sees it: one string for training, ranking and translating, and what travels with it.

Beside every saved model stand sordino.json, with the system prompt spelled out, and a chat template that begins a
conversation without a system turn with this one: who uses stock transformers asks as the model was trained.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.config.card import Card
from sordino.config.schema import SYSTEM_PROMPT, PromptSection, fill_instruction
from sordino.errors import FamilyError, RecipeError, is_out_of_memory, reason
from sordino.models import chat_template, registry
from sordino.models.control_tokens import control_tokens
from sordino.models.family import Family, Prompt
from sordino.models.processor_check import placeholder
from sordino.runtime import files
from sordino.runtime.terminal import quoted

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel


def render(speech: SpeechModel, section: PromptSection, source: str, target: str) -> str:
    """The text that is asked, with one audio placeholder. source, target: languages by code or name.

    Raises RecipeError for control tokens of the model in the prompt's texts, FamilyError for a chat template that fails
    or places no audio, or more than one clip's.
    """
    refuse_control_tokens(section, speech.processor.tokenizer)
    prompt = resolved(speech.family, section, source, target)
    try:
        text = speech.family.chat.render(speech.processor, prompt)
    except FamilyError:
        raise
    except Exception as error:  # whatever a template does: jinja2's own errors, Python's inside of it
        if is_out_of_memory(error):
            raise
        raise _template_problem(speech, f"fails ({type(error).__name__}: {reason(error)})") from error
    if speech.model is not None:
        count = text.count(placeholder(speech))
        if count != 1:
            raise _template_problem(speech, f"places {count} clips of audio, and not one")
    return text


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


def resolved(family: Family, section: PromptSection, source: str, target: str) -> Prompt:
    """The prompt with its system prompt and languages spelled out."""
    example = (section.example[0], section.example[1]) if section.example else None
    instruction = fill_instruction(section.instruction, source, target)
    return Prompt(instruction, system_of(family, section), section.style, example)


def system_of(family: Family, section: PromptSection) -> str | None:
    """The system prompt, `auto` resolved."""
    if section.system != "auto":
        return section.system
    return SYSTEM_PROMPT if family.chat.takes_system else None


def describe(directory: Path, family: Family, card: Card) -> None:
    """Leave beside a model how it is asked: sordino.json, and the default system turn of its chat template.

    Raises OSError.
    """
    system = system_of(family, card.prompt)
    resolved_prompt = dataclasses.replace(card.prompt, system=system)
    dataclasses.replace(card, prompt=resolved_prompt).write(directory)
    if card.prompt.style == "chat" and family.chat.default_system and (directory / registry.CONFIG).is_file():
        turn = None
        if card.source and card.target:
            turn = family.chat.default_system(resolved(family, card.prompt, card.source, card.target))
        _set_default_turn(directory, registry.load_processor(family, str(directory)), turn)


def _set_default_turn(directory: Path, processor: Any, turn: Any) -> None:
    """turn: content of the system turn; where there is none, the template gets back its own."""
    template, file = chat_template.of(processor), directory / chat_template.FILE
    if template is None:
        return
    text = chat_template.with_default(template, turn)
    before = file.read_text(encoding="utf-8") if file.is_file() else template
    if text != before:
        files.write_text(file, text)
        (directory / chat_template.OLDER_FILE).unlink(missing_ok=True)


def _template_problem(speech: SpeechModel, what: str) -> FamilyError:
    file = Path(speech.path) / chat_template.FILE
    where = str(file) if file.is_file() else f"the chat template of {speech.path}"
    return FamilyError(f"{where} {what}.", "Copy the processor's files of the original model beside the weights.")
