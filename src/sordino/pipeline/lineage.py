"""What a model of a run was made from: the stages behind it, its base model and the data, from their stage.json files.

Every stage records its parents' hashes, and every model's files are recorded by hash, so a lineage that does not hold
together is noticed: a model that was changed or moved out of its run has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config import records
from sordino.errors import ArtifactError
from sordino.pipeline import artifact
from sordino.pipeline.runner import pipeline

PREPARE = "prepare"  # the stage whose outer parents are corpora; those of any other are base models


@dataclass(frozen=True)
class Data:
    """A corpus that a run read. name: of its reader; hours: by split, of everything the run prepared."""

    name: str
    path: str
    subsets: tuple[str, ...]
    hours: Mapping[str, float]


@dataclass(frozen=True)
class Lineage:
    """stages: stage.json of everything the model was made from, parents first, the model's own last.

    bases: (path or name, hash) of the models that no stage of the run made.
    """

    stages: tuple[dict[str, Any], ...]
    bases: tuple[tuple[str, str], ...]
    data: tuple[Data, ...]


def read(model: Path) -> Lineage:
    """The lineage of a model directory of a run, or of one of its exports.

    Raises ArtifactError where it is of no run, or a link of the chain is missing or was made anew since.
    """
    own = next((place for place in (model, model.parent) if records.read_stage(place) is not None), None)
    if own is None:
        raise ArtifactError(f"the lineage of {model} is unknown: it is no finished stage of a run.")
    _check_files(own)
    stage = records.read_stage(own)
    assert stage is not None
    return behind(own, stage)


def behind(directory: Path, record: Mapping[str, Any]) -> Lineage:
    """The lineage of a stage of a run by its record: `stage`, `section` and `parents`. It need not have finished.

    Raises ArtifactError as `read` does.
    """
    stages: dict[str, dict[str, Any]] = {}
    bases: dict[str, str] = {}
    _collect(directory, record, stages, bases)
    data = [corpus for stage in stages.values() if stage["stage"] == PREPARE for corpus in _data(stage)]
    return Lineage(tuple(stages.values()), tuple(bases.items()), tuple(data))


def _collect(
    directory: Path, stage: Mapping[str, Any], stages: dict[str, dict[str, Any]], bases: dict[str, str]
) -> None:
    run, directories = directory.parent, {stage.directory for stage in pipeline()}
    for parent in stage["parents"]:
        path, made = parent["path"], records.read_stage(run / parent["path"])
        if made is not None:
            if made["hash"] != parent["hash"]:
                raise ArtifactError(
                    f"the lineage of {directory} is broken: it was made from another {path} than the one beside it.",
                    "`sordino run RECIPE` makes what is out of date again.",
                )
            if path not in stages:
                _collect(run / path, made, stages, bases)
        elif path in directories:
            raise ArtifactError(
                f"the lineage of {directory} is broken: {run / path} is gone.", "Keep at least its stage.json."
            )
        elif stage["stage"] != PREPARE:
            bases[path] = parent["hash"]
    stages[directory.name] = dict(stage)


def _check_files(directory: Path) -> None:
    stage = records.read_stage(directory)
    assert stage is not None
    changed = artifact.differences(directory, stage)
    if changed:
        raise ArtifactError(
            f"{directory / next(iter(changed))} is not as its stage left it, so the model's lineage is unknown.",
            "Run the stage again.",
        )


def _data(stage: Mapping[str, Any]) -> list[Data]:
    section, extra = stage["section"], stage["section"].get("extra")
    return [
        Data(part["corpus"], part["path"], tuple(part.get("subsets") or ()), stage.get("hours", {}))
        for part in ([section, extra] if extra else [section])
    ]
