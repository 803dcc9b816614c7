"""How a saved model is asked by who knows nothing of sordino."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.config.card import Card
from sordino.config.schema import PromptSection
from sordino.models import prompts, registry, saving
from sordino.models.family import Prompt
from sordino.models.speech import SpeechModel


@pytest.mark.parametrize("name", ["qwen2_audio", "qwen2_5_omni", "qwen3_asr"])
def test_a_conversation_without_a_system_turn_asks_as_the_model_was_trained(
    pico: Callable[[str], SpeechModel], tmp_path: Path, name: str
) -> None:
    speech = pico(name)
    saving.save(speech, tmp_path)
    section = PromptSection(instruction="Write {target}:", system="You translate speech.")
    prompts.describe(tmp_path, speech.family, Card(section, "en", "de"))
    processor = registry.load_processor(speech.family, str(tmp_path))
    template = processor if hasattr(processor, "apply_chat_template") else processor.tokenizer
    question = [{"type": "audio", "audio": "clip"}, {"type": "text", "text": "Write German:"}]
    turns = [{"role": "user", "content": question}]
    text = template.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == prompts.render(speech, section, "en", "de")
    asked = Prompt("Write German:", system="You translate speech.")
    assert speech.family.chat.render(processor, asked) == text  # and one with its own turn as before
