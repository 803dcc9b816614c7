"""Records of earlier schemas, read as records of today's: renamed and dropped settings, as data.

A record (stage.json, .request.json) carries the number of the schema that wrote it; one without is of schema 1. A new
setting needs no entry: a record that lacks it counts as made with its default. A setting that is renamed or dropped
gets one, so that what is finished stays so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.errors import ArtifactError
from sordino.runtime.terminal import quoted

NUMBER = "schema"  # key of the number in a record


@dataclass(frozen=True)
class Migration:
    """One step, by stage. Keys are dotted within the stage's section.

    renamed: old key -> new key, in the same section. dropped: key -> the default it had; another value stays in the
    record, where it makes the stage out of date.
    """

    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dropped: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# the first step leads from schema 1 to 2
MIGRATIONS: tuple[Migration, ...] = (Migration(renamed={"qlora": {"quantise": "quantize"}}),)


def schema() -> int:
    """Today's number."""
    return 1 + len(MIGRATIONS)


def refuse_newer(record: Mapping[str, Any], file: Path) -> int:
    """The record's schema. Raises ArtifactError for one that is yet to come, or is no number."""
    number = record.get(NUMBER, 1)
    if not isinstance(number, int) or number < 1:
        raise ArtifactError(f"{file} is damaged: '{NUMBER}' cannot be {quoted(number, 60)}.", "Run its stage again.")
    if number > schema():
        raise ArtifactError(
            f"{file} was written by a newer sordino (schema {number}; this one knows {schema()}).",
            "Update sordino, or set another name or out.",
        )
    return number


def migrated(record: Mapping[str, Any], stage: str | None, file: Path) -> dict[str, Any]:
    """A record with the settings' names of today. Raises ArtifactError for one of a schema that is yet to come."""
    number = refuse_newer(record, file)
    section = copy.deepcopy(record["section"])
    for migration in MIGRATIONS[number - 1 :]:
        for old, new in migration.renamed.get(stage or "", {}).items():
            _rename(section, old, new)
        for key, default in migration.dropped.get(stage or "", {}).items():
            _drop(section, key, default)
    return {**record, NUMBER: schema(), "section": section}


def _rename(section: dict[str, Any], old: str, new: str) -> None:
    holder, name = _holder(section, old)
    if holder is not None and name in holder:
        holder[new.rpartition(".")[2]] = holder.pop(name)


def _drop(section: dict[str, Any], key: str, default: Any) -> None:
    holder, name = _holder(section, key)
    if holder is not None and name in holder and holder[name] == default:
        del holder[name]


def _holder(section: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The (nested) section that a dotted key lies in, None where it is not there; and the key's last part."""
    *path, name = key.split(".")
    holder: Any = section
    for part in path:
        holder = holder.get(part) if isinstance(holder, dict) else None
    return (holder if isinstance(holder, dict) else None), name
