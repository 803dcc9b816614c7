"""sordino.json: what is written is read back, what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.config import card
from sordino.config.card import Card
from sordino.config.schema import PromptSection
from sordino.errors import ArtifactError


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    asked = Card(PromptSection("base", None, "Sag es auf {target}:", ("a", "b")), "English", "de")
    asked.write(tmp_path)
    assert card.read(tmp_path) == asked


def test_a_model_without_a_card_has_the_default_prompt_and_no_languages(tmp_path: Path) -> None:
    assert card.read(tmp_path) == Card(PromptSection(), None, None)
    assert card.read(tmp_path / "gone") == Card()


def test_cards_of_before_the_languages_were_in_them(tmp_path: Path) -> None:
    (tmp_path / "sordino.json").write_text('{"prompt": {"style": "base", "system": null, "example": ["a", "b"]}}')
    assert card.read(tmp_path) == Card(PromptSection("base", None, example=("a", "b")), None, None)


@pytest.mark.parametrize(
    "text", ['{"prompt": {"style": "chat", "color": "red"}}', '{"source": "en"}', "[1]", '{"prompt": 3}']
)
def test_a_card_that_does_not_say_how_the_model_is_asked(tmp_path: Path, text: str) -> None:
    (tmp_path / "sordino.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"sordino\.json does not say how the model is asked"):
        card.read(tmp_path)
