"""Exports stay when others are asked for: which formats of a finished export are as good as new. No torch.

A format depends on the model, the prompt and the languages; format mixed also on its budget, clips and ranking,
w4a16-gptq on the clips that it is rounded for. What a recipe does not ask for stays as it was asked for then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config.records import changed_settings, completed, read_stage
from sordino.config.run_layout import AUDIT, DATA, EXPORT, PSEUDO, RANKING
from sordino.config.schema import Recipe
from sordino.formats.registry import MIXED
from sordino.pipeline.artifact import Parent

STAGE = "export"
GPTQ = "w4a16-gptq"
# settings and further parents of single formats
OWN_SETTINGS = {MIXED: ("budget_gb", "budget_ratio", "sensitivity"), GPTQ: ("calibration",)}
OWN_PARENTS = {MIXED: (DATA, RANKING), GPTQ: (DATA, PSEUDO)}
# `of` is the model's name, whose hash is among the parents
OF_FORMATS = ("formats", "of", *(name for names in OWN_SETTINGS.values() for name in names))


@dataclass(frozen=True)
class Exports:
    """kept: formats that are there and stay, whether asked for or not; settings, parents: with theirs.

    all_stay: whether the finished artefact holds no others.
    """

    kept: tuple[str, ...]
    settings: dict[str, Any]
    parents: list[Parent]
    all_stay: bool


def beside(recipe: Recipe, settings: Mapping[str, Any], parents: Sequence[Parent]) -> Exports:
    """What an export of these settings and parents will hold, beside what it is asked for."""
    asked = list(settings["formats"])
    record = read_stage(recipe.directory / EXPORT)
    kept = [] if record is None else _kept(recipe.directory / EXPORT, record, settings, parents)
    merged, above = {**settings}, list(parents)
    for name in kept:
        if record is None or name in asked:
            continue
        before = completed(STAGE, record["section"])
        merged |= {key: before[key] for key in OWN_SETTINGS.get(name, ())}
        there = {parent.path for parent in above}
        recorded = (Parent(row["path"], row["hash"]) for row in record["parents"])
        above += [p for p in recorded if p.path in OWN_PARENTS.get(name, ()) and p.path not in there]
    formats = [*kept, *(name for name in asked if name not in kept)]
    all_stay = record is not None and len(kept) == len(_formats(record))
    return Exports(tuple(kept), merged | {"formats": formats}, above, all_stay)


def _formats(record: Mapping[str, Any]) -> list[str]:
    return list(completed(STAGE, record["section"])["formats"])


def _kept(
    directory: Path, record: Mapping[str, Any], settings: Mapping[str, Any], parents: Sequence[Parent]
) -> list[str]:
    before = {row["path"]: row["hash"] for row in record["parents"]}
    now = {parent.path: parent.hash for parent in parents}
    model = parents[0]  # what is exported; the others are of single formats
    if changed_settings(STAGE, record["section"], settings, OF_FORMATS) or before.get(model.path) != model.hash:
        return []

    def stays(name: str) -> bool:
        own = OWN_PARENTS.get(name, ())
        if name not in settings["formats"]:  # it may not need what another format needs anew
            return all(before[path] == now.get(path, before[path]) for path in own if path in before)
        others = [key for key in OF_FORMATS if key not in OWN_SETTINGS.get(name, ())]
        same = not changed_settings(STAGE, record["section"], settings, others)
        return same and all(before.get(path) == now.get(path) for path in own if path in now or name == MIXED)

    return [name for name in _formats(record) if _whole(directory, record, name) and stays(name)]


def _whole(directory: Path, record: Mapping[str, Any], name: str) -> bool:
    files = [file for file in record["outputs"] if file.startswith(f"{name}/")]
    return f"{name}/{AUDIT}" in files and all((directory / file).is_file() for file in files)


def take_over(directory: Path, name: str, out: Path) -> None:
    """Give the files of a finished format a second name; its audit comes last, as when it is written."""
    source = directory / name
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    for path in sorted(paths, key=lambda path: path.name == AUDIT):
        target = out / path.relative_to(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:  # another file system, or one without links
            shutil.copy2(path, target)
