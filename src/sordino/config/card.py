"""sordino.json: what stands beside every saved model and says how it is asked, and in which languages."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.config.run_layout import CARD
from sordino.config.schema import PromptSection
from sordino.errors import ArtifactError
from sordino.runtime import files, foreign
from sordino.runtime.terminal import quoted

REMEDY = "Make it again, or correct it by hand."


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
    if not file.is_symlink() and not file.exists():
        return Card()
    record = foreign.read_json(file, raises=ArtifactError, remedy=REMEDY, required={"prompt": dict})
    prompt = record["prompt"]
    names = {f.name for f in dataclasses.fields(PromptSection)}
    for place, value in (*_problems(prompt), *((f"prompt.{key}", prompt[key]) for key in prompt.keys() - names)):
        raise ArtifactError(
            f"{file} does not say how the model is asked: {place} cannot be {quoted(value, 100)}.", REMEDY
        )
    for place in ("source", "target"):
        if not (record.get(place) is None or (isinstance(record[place], str) and record[place].strip())):
            raise ArtifactError(f"{file}: {place} cannot be {quoted(record[place], 100)}.", REMEDY)
    section = PromptSection(**{**prompt, "example": tuple(prompt.get("example", ()))})
    return Card(section, record.get("source"), record.get("target"))


def _problems(prompt: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Place and value of what is of another kind than a recipe's prompt."""
    styles = typing.get_args(typing.get_type_hints(PromptSection)["style"])
    if prompt.get("style", styles[0]) not in styles:
        yield "prompt.style", prompt["style"]
    if not isinstance(prompt.get("system"), str | None):
        yield "prompt.system", prompt["system"]
    if not isinstance(prompt.get("instruction", ""), str):
        yield "prompt.instruction", prompt["instruction"]
    example = prompt.get("example", [])
    if not isinstance(example, list) or len(example) not in (0, 2) or not all(isinstance(t, str) for t in example):
        yield "prompt.example", example
