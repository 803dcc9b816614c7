"""sordino.json: what stands beside every saved model and says how it is asked, and in which languages."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from sordino.config.run_layout import CARD
from sordino.config.schema import PromptSection
from sordino.errors import ArtifactError
from sordino.runtime import files


@dataclass(frozen=True)
class Card:
    """source, target: languages as names or codes; None where nothing says which."""

    prompt: PromptSection = field(default_factory=PromptSection)
    source: str | None = None
    target: str | None = None

    def write(self, directory: Path) -> None:
        files.write_json(directory / CARD, dataclasses.asdict(self))


def read(directory: Path) -> Card:
    """The card of a model directory; the default prompt and no languages where there is none.

    Raises ArtifactError for a card that does not say how the model is asked.
    """
    file = directory / CARD
    if not file.is_file():
        return Card()
    record = files.read_json(file)
    try:
        prompt = PromptSection(**{**record["prompt"], "example": tuple(record["prompt"]["example"])})
        return Card(prompt, record.get("source"), record.get("target"))
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{file} does not say how the model is asked ({error}).", "Make it again.") from error
