"""Recipes: one experiment per YAML file, one section per stage.

A section that is present is a stage that runs. `load` finds the file, applies `key=value` overrides, refuses unknown
keys, wrong types and contradictions, and reports all mistakes at once. The result is frozen and fully resolved: what is
recorded in stage.json is what ran.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.config import chain, parsing
from sordino.config.contradictions import contradictions
from sordino.config.schema import Format, Recipe
from sordino.config.setting import out_of_limits
from sordino.errors import RecipeError, near_match
from sordino.languages import language_tag
from sordino.runtime import foreign
from sordino.runtime.terminal import quoted

NAME_BYTES = 200  # of a run's directory: file systems end at 255, and work in progress has longer names
SHIPPED = Path(__file__).parents[1] / "recipes"
DEMO = "demo"  # directory of a source checkout: the demo's model and corpus, which the package does not hold


def load(file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides (dotted keys, YAML values).

    file: a YAML file, or the name of a shipped recipe (`demo`, `demo.yaml`, `recipes/demo.yaml`). A file goes first.
    Raises RecipeError that lists every mistake.
    """
    path = find(file)
    raw = foreign.read_yaml(path, raises=RecipeError, remedy="`sordino settings` lists what a recipe may say.")
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{path} holds no settings.", "A recipe is a YAML mapping; `sordino settings` lists what it may say."
        )
    problems: list[str] = []
    for override in overrides:
        parsing.override(Recipe, raw, override, problems)
    recipe = parse(raw, problems, str(path))
    if path.resolve().parent == SHIPPED.resolve():
        _refuse_demo_elsewhere(recipe)
    return recipe


def shipped() -> dict[str, Path]:
    """Name -> file of the recipes that are part of the package."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


def find(file: str | Path) -> Path:
    """The file of a recipe. Raises RecipeError, with the near match, where there is none."""
    path = Path(file)
    if path.is_file():
        return path
    names = shipped()
    name = path.name.removesuffix(".yaml")
    by_name = path.parent in (Path(), Path("recipes"))
    if by_name and name in names:
        return names[name]
    near = near_match(name, names)
    remedy = f"Did you mean '{near}'? " if by_name and near else ""
    raise RecipeError(f"there is no recipe {path}.", f"{remedy}Shipped recipes, by name: {', '.join(names)}.")


def _refuse_demo_elsewhere(recipe: Recipe) -> None:
    """Raise RecipeError where the demo's recipe is used without the demo's data."""
    corpus = recipe.data.path if recipe.data else ""
    missing = [text for text in (recipe.model, corpus) if Path(text).parts[:1] == (DEMO,) and not Path(text).exists()]
    if missing:
        raise RecipeError(
            f"{recipe.name}: there is no {' and no '.join(missing)} here; the demo's model and corpus are in sordino's "
            "source checkout, not in the package.",
            "Run this in a checkout, or set model=... and data.path=...",
        )


def parse(raw: Mapping[str, Any], problems: list[str], origin: str) -> Recipe:
    """A mapping -> Recipe with names resolved. Raises RecipeError with all of `problems` and its own."""
    recipe = _default_formats(typing.cast(Recipe, parsing.section(Recipe, raw, "", problems)))
    if not problems:
        problems += contradictions(recipe) + out_of_limits(recipe)
    if problems:
        raise RecipeError(f"{origin}: " + "; ".join(problems) + ".")
    return dataclasses.replace(recipe, name=_name(recipe, origin))


def _name(recipe: Recipe, origin: str) -> str:
    """The run's directory, languages filled in. Raises RecipeError for what is no plain name."""
    name = recipe.name
    for key, language in (("{source}", recipe.source), ("{target}", recipe.target)):
        name = name.replace(key, language_tag(language))
    written = quoted(recipe.name, 100)
    if "{" in name or "}" in name:
        raise RecipeError(f"{origin}: name: {written} may use {{source}} and {{target}} only.")
    if "/" in name or name in ("", ".", "..") or not name.isprintable() or len(os.fsencode(name)) > NAME_BYTES:
        problem = f"{origin}: name: {written} must be a plain directory name of at most {NAME_BYTES} bytes."
        raise RecipeError(problem, "Use `out` for its parent.")
    return name


def _default_formats(recipe: Recipe) -> Recipe:
    section = recipe.export
    if not section or section.formats:
        return recipe
    formats: tuple[Format, ...] = ("mixed",) if section.budget_gb or section.budget_ratio else ("nf4",)
    if chain.exports_qat(recipe):
        assert recipe.qat
        formats = (recipe.qat.format,)
    return dataclasses.replace(recipe, export=dataclasses.replace(section, formats=formats))
