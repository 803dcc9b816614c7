"""What a run measured of one of its models, where that is still of the model as it is now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config import records
from sordino.config.chain import BASE, CHAIN, TEACHER
from sordino.config.run_layout import EXPORT, RunLayout
from sordino.pipeline import artifact, results
from sordino.report.model import System
from sordino.runtime import files

EVALUATE = "`sordino evaluate RECIPE` makes them."


@dataclass(frozen=True)
class Evaluation:
    """split, clips: that the scores are of. systems: the base model, the teacher and the model, those that were scored;
    the model comes last. device: of the speeds."""

    split: str
    clips: int
    systems: tuple[System, ...]
    device: str

    @property
    def own(self) -> System:
        return self.systems[-1]


def read(model: Path) -> Evaluation | str:
    """The scores of a model of a run or of an export; or why there are none."""
    stage = model if records.read_stage(model) is not None else model.parent
    record, key = records.read_stage(stage), _key(model)
    if record is None or key is None:
        return "it is no model of a finished stage."
    layout = RunLayout(stage.parent)
    scored = records.read_stage(layout.scores.parent)
    if scored is None:
        return f"the run has no scores. {EVALUATE}"
    if {"path": stage.name, "hash": record["hash"]} not in scored["parents"]:
        return f"the run's scores are not of this {stage.name}. {EVALUATE}"
    if artifact.differences(layout.scores.parent, scored):
        return f"the run's scores are not as they were written. {EVALUATE}"
    scores, sizes, speeds = (files.read_json(file) for file in (layout.scores, layout.sizes, layout.speeds))
    if key not in scores["systems"]:
        return f"the run did not score this model. {EVALUATE}"
    keys = [name for name in (BASE, TEACHER) if name in scores["systems"] and name != key]
    systems = [_system(name, scores["systems"], sizes, speeds) for name in (*keys, key)]
    return Evaluation(scores["split"], scores["clips"], tuple(systems), speeds[key]["device"])


def _system(key: str, systems: Mapping[str, Any], sizes: Mapping[str, Any], speeds: Mapping[str, Any]) -> System:
    return results.system(key, systems[key], sizes[key], speeds[key])


def _key(model: Path) -> str | None:
    """The name that a run's scores give to a model: 'student', or an export's format."""
    if model.parent.name == EXPORT:
        return model.name
    return next((entry.key for entry in CHAIN if entry.directory == model.name), None)
