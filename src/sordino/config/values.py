"""Recipes and settings as Python values: what the command line says in words, for those who call from Python."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from sordino.config import parsing
from sordino.config import recipe as recipes
from sordino.config.schema import Recipe
from sordino.config.sections import hints, section_in


def with_settings(recipe: str | Path | Recipe, settings: Mapping[str, Any]) -> Recipe:
    """A recipe, or that of a file, with some settings replaced, and checked: {"target": "zh", "distil": {"epochs": 2}}.

    Raises RecipeError that lists every mistake.
    """
    words = list(_words(settings))
    if not isinstance(recipe, Recipe):
        return recipes.load(recipe, words)
    raw, problems = _raw(recipe), list[str]()
    for word in words:
        parsing.override(Recipe, raw, word, problems)
    return recipes.parse(raw, problems, "the recipe")


def _words(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """As the command line has them: `distil.epochs=2`."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _words(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"


def _raw(section: Any) -> dict[str, Any]:
    """A section as a YAML file would hold it: what is left out is not there, what is switched off is False."""
    raw: dict[str, Any] = {}
    kinds = hints(cast(Any, type(section)))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            raw[field.name] = _raw(value)
        elif value != field.default:
            raw[field.name] = False if value is None and section_in(kinds[field.name]) else value
    return raw
