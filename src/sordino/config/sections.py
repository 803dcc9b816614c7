"""The schema, seen from outside: which section a stage has, which settings and sections lie in a section."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any

from sordino.config.schema import Recipe

PREPARE = "prepare"  # the one stage whose section has another name: data


@functools.cache
def hints(section: type) -> dict[str, Any]:
    """Setting -> type."""
    return typing.get_type_hints(section)


def section_in(hint: Any) -> type | None:
    """The section that a type is or may be: `RankSection | None` -> RankSection; None for any other type."""
    members = typing.get_args(hint) if is_union(hint) else (hint,)
    return next((m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)), None)


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def is_optional(hint: Any) -> bool:
    return is_union(hint) and type(None) in typing.get_args(hint)


@functools.cache
def stage_sections() -> dict[str, tuple[str, type]]:
    """Stage -> (its key in a recipe, its section), in the order in which stages run."""
    optional = {key: section_in(hint) for key, hint in hints(Recipe).items() if is_optional(hint)}
    return {PREPARE if key == "data" else key: (key, section) for key, section in optional.items() if section}
