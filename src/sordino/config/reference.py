"""The reference of all settings, made from the schema: as values, as Markdown and as text for `--help`.

python -m sordino.config.reference > docs/settings.md
"""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sordino.config.schema import PromptSection, Recipe, ResourcesSection
from sordino.config.sections import hints, is_optional, section_in, stage_sections
from sordino.config.setting import limits_of, meaning_of
from sordino.errors import RecipeError, near_match

WHOLE = "recipe"  # the settings that are in no section
COLUMN, WIDTH = 34, 110  # characters: where meanings begin, and where lines end at the latest


@dataclass(frozen=True)
class Setting:
    """One setting. stage: whose it is, or a section's name; key: dotted, as in overrides; limits: '' for none."""

    stage: str
    key: str
    type: str
    default: Any
    limits: str
    meaning: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def sections() -> dict[str, tuple[str, type]]:
    """Name -> (key in a recipe, section): what belongs to no stage, then every stage."""
    whole = {"resources": ("resources", ResourcesSection), "prompt": ("prompt", PromptSection)}
    return {WHOLE: ("", Recipe), **whole, **stage_sections()}


def settings(stage: str | None = None) -> tuple[Setting, ...]:
    """Every setting, or those of one stage or section. Raises RecipeError for an unknown one."""
    return tuple(row for name in _names(stage) for row in _rows(name))


def _names(stage: str | None) -> list[str]:
    names = {name: key for name, (key, _) in sections().items()}
    if stage is None:
        return list(names)
    name = next((name for name, key in names.items() if stage in (name, key)), None)  # prepare's key is data
    if name is None:
        near = near_match(stage, names)
        remedy = f"Did you mean '{near}'?" if near else f"There are: {', '.join(names)}."
        raise RecipeError(f"settings: there is no stage '{stage}'.", remedy)
    return [name]


def _rows(stage: str) -> Iterator[Setting]:
    key, section = sections()[stage]
    if section is Recipe:
        fields = [f.name for f in dataclasses.fields(Recipe) if meaning_of(f)]
        yield from (row for row in _of(stage, Recipe, "") if row.key in fields)
    else:
        yield from _of(stage, section, f"{key}.")


def _of(stage: str, section: type, prefix: str) -> Iterator[Setting]:
    for field in dataclasses.fields(section):
        key, hint = f"{prefix}{field.name}", hints(section)[field.name]
        inner = section_in(hint)
        if inner is None:
            yield Setting(stage, key, _type(hint), field.default, str(limits_of(field)), meaning_of(field))
        else:
            yield Setting(
                stage, key, "section", None if is_optional(hint) else {}, "", meaning_of(field) or about(inner)
            )
            yield from _of(stage, inner, f"{key}.")


def about(section: type) -> str:
    """What a section is, on one line."""
    return " ".join((inspect.getdoc(section) or "").split())


def _type(hint: Any) -> str:
    args = typing.get_args(hint)
    if is_optional(hint):
        return f"{_type(next(a for a in args if a is not type(None)))} or null"
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, args))}"
    if typing.get_origin(hint) is tuple:
        return f"list of {_type(args[0]).removeprefix('one of ')}"
    return str(hint.__name__)


def as_yaml(value: Any) -> str:
    """A default as one would write it in a recipe or an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


def markdown() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting of a recipe. This page is made from `src/sordino/config/schema.py`:",
        "`python -m sordino.config.reference > docs/settings.md`. `sordino settings [STAGE]` prints the same.",
        "",
        "A recipe is a YAML file; `key=value` on the command line replaces a setting (`finetune.lr=1e-4`). A section",
        "that is there is a stage that runs; translate, evaluate and report run unless they are `false`. `null` is",
        "no value.",
    ]
    for name, (key, section) in sections().items():
        lines += ["", f"## {name}" + (f": section `{key}`" if key not in ("", name) else ""), "", about(section)]
        rows = settings(name)
        if rows:
            lines += ["", "| setting | type | default | limits | meaning |", "|---|---|---|---|---|"]
        for row in rows:
            lines.append(f"| `{row.key}` | {row.type} | `{as_yaml(row.default)}` | {row.limits} | {row.meaning} |")
    return "\n".join(lines) + "\n"


def text(stage: str | None = None) -> str:
    """The settings of one stage, or of all, for a terminal."""
    blocks = [f"{name}: {about(sections()[name][1])}\n{_lines(settings(name))}" for name in _names(stage)]
    return "\n\n".join(block.rstrip() for block in blocks)


def help_text(stage: str) -> str:
    """The end of a stage's `--help`: its settings, with their defaults."""
    rows = settings(stage)
    key, _ = sections()[stage]
    head = f"settings, in the recipe's section `{key}` or as key=value:" if rows else "This stage has no settings."
    return f"{head}\n{_lines(rows)}\n`sordino settings recipe` and `sordino settings prompt` list those of every stage."


def _lines(rows: tuple[Setting, ...]) -> str:
    return "".join(_entry(row) for row in rows)


def _entry(row: Setting) -> str:
    facts = "; ".join(filter(None, (row.type, row.limits)))
    width = min(WIDTH, shutil.get_terminal_size().columns - 2)
    lines = textwrap.wrap(f"{row.meaning} ({facts})", max(width - COLUMN, 20), break_on_hyphens=False)
    name = f"  {row.key}={as_yaml(row.default)}"
    if len(name) > COLUMN - 2:  # as argparse does
        return f"{name}\n" + "".join(f"{'':{COLUMN}}{line}\n" for line in lines)
    return f"{name:{COLUMN}}{lines[0]}\n" + "".join(f"{'':{COLUMN}}{line}\n" for line in lines[1:])


if __name__ == "__main__":
    print(markdown(), end="")
