"""A resolved recipe as YAML that reads back as the same recipe: what ran, for someone who wants to run it again."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from sordino.config.schema import Recipe
from sordino.config.sections import hints, is_optional, section_in


def to_yaml(recipe: Recipe) -> str:
    """Every setting, defaults too. A section that is left out is `false`."""
    return yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True)


def _plain(section: Any) -> dict[str, Any]:
    kind: type = type(section)
    values: dict[str, Any] = {}
    for key, hint in hints(kind).items():
        value = getattr(section, key)
        if dataclasses.is_dataclass(value):
            values[key] = _plain(value)
        elif value is None and is_optional(hint) and section_in(hint):
            values[key] = False  # null would ask for the section with its defaults
        else:
            values[key] = list(value) if isinstance(value, tuple) else value
    return values
