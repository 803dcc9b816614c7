"""sordino.json: what stands beside every saved model and says how it is asked, and in which languages."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from sordino.config import parsing
from sordino.config.run_layout import CARD
from sordino.config.schema import PromptSection
from sordino.errors import ArtifactError
from sordino.runtime import files
from sordino.runtime.terminal import quoted


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
    if not os.path.lexists(file):
        return Card()
    record = files.read_json(file)
    record = record if isinstance(record, dict) else {}
    problems: list[str] = []
    if not isinstance(record.get("prompt"), dict):
        problems.append("prompt: missing, or no object")
    prompt = parsing.section(PromptSection, record.get("prompt"), "prompt", problems)
    for key in ("source", "target"):
        if not isinstance(record.get(key), str | None):
            problems.append(f"{key}: expected a language, found {quoted(record[key], 60)}")
    if problems:
        raise ArtifactError(f"{file} does not say how the model is asked: {'; '.join(problems)}.", "Make it again.")
    return Card(prompt, record.get("source"), record.get("target"))
