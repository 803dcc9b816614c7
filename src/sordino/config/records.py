"""stage.json and .request.json as they are read: in the terms of today's schema, whichever schema wrote them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sordino.config.migrations import migrated, refuse_newer
from sordino.config.schema import Recipe
from sordino.config.sections import hints, section_in, stage_sections
from sordino.runtime import files, foreign

STAGE_FILE = "stage.json"
REQUESTED: Mapping[str, foreign.Types] = {"section": dict, "parents": list}
FINISHED = {**REQUESTED, "outputs": dict, "hash": str, "seconds": (int, float)}
PARENT: Mapping[str, foreign.Types] = {"path": str, "hash": str}


def read_stage(directory: Path) -> dict[str, Any] | None:
    """stage.json of a finished stage; None where the stage has not finished.

    Raises ArtifactError for a damaged file, or one of a newer sordino.
    """
    file = directory / STAGE_FILE
    if not file.is_file():
        return None
    record = files.read_json(file, {})
    if record.get("complete") is not True:
        return None
    refuse_newer(record, file)
    files.require(record, file, FINISHED)
    for parent in record["parents"]:
        files.require(parent, f"{file}: a parent", PARENT)
    return migrated(record, record.get("stage"), file)


def fingerprints(directory: Path) -> dict[str, str]:
    """Relative path -> fingerprint of every file that is part of a directory's artefact."""
    paths = sorted(p for p in directory.rglob("*") if p.is_file())
    relative = ((p.relative_to(directory), p) for p in paths)
    return {
        r.as_posix(): files.fingerprint_file(p)
        for r, p in relative
        if r.name != STAGE_FILE and not r.parts[0].startswith(".")
    }


def changed_settings(
    stage: str | None, old: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    """Settings in which two records of a stage differ, sorted. A setting that one lacks counts as its default."""
    before, after = completed(stage, old), completed(stage, now)
    return sorted(k for k in {*before, *after} - {*ignored} if before.get(k) != after.get(k))


def with_settings_of(settings: Mapping[str, Any], record: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Settings with those of these names as stage.json has them: left out where it is older than the setting."""
    section = record["section"]
    others = {name: value for name, value in settings.items() if name not in names}
    return others | {name: section[name] for name in names if name in section}


def completed(stage: str | None, section: Mapping[str, Any]) -> dict[str, Any]:
    """What a record holds of a stage's settings, with today's default for every one that is not there.

    A stage's own settings and those of the whole recipe lie side by side, as stages record them. What only a stage
    itself can know has no default.
    """
    plain: dict[str, Any] = json.loads(json.dumps(section))  # tuples are lists, as in a file
    _, own = stage_sections().get(stage or "", ("", None))
    names = hints(own) if own else {}
    full = _completed(Recipe, {key: value for key, value in plain.items() if key not in names})
    return full | _completed(own, {key: value for key, value in plain.items() if key in names}) if own else full


def _completed(section: type, values: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(section()))) | values
    for key, hint in hints(section).items():
        inner = section_in(hint)
        if inner and isinstance(settings[key], dict):
            settings[key] = _completed(inner, settings[key])
    return settings
