"""PIPELINE: the whole method, top to bottom; and how a recipe is run, planned and checked against it.

corpus ─ prepare ─ finetune ─ rank ─ prune ─┐
                      └─ pseudolabel ───────┴─ distil ─ qlora ─ merge ─ export
translate ─ evaluate ─ report: every model of the chain
sweep: smaller forms of them, bytes against quality
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino import artifact
from sordino.compress import importance
from sordino.errors import ArtifactError, RecipeError
from sordino.metrics import registry as metrics
from sordino.progress import note
from sordino.recipe import Recipe
from sordino.stages import (
    distil,
    evaluate,
    export,
    finetune,
    merge,
    prepare,
    prune,
    pseudolabel,
    qlora,
    rank,
    report,
    sweep,
    translate,
)
from sordino.stages.forecast import Forecast, forecast
from sordino.stages.job import Job, Stage, device_of, parents_of, resolved

PIPELINE: tuple[Stage, ...] = (
    prepare.STAGE,
    finetune.STAGE,
    rank.STAGE,
    prune.STAGE,
    pseudolabel.STAGE,
    distil.STAGE,
    qlora.STAGE,
    merge.STAGE,
    export.STAGE,
    translate.STAGE,
    evaluate.STAGE,
    report.STAGE,
    sweep.STAGE,
)


@dataclass(frozen=True)
class Planned:
    """One line of the plan. why: None where the stage is done; bytes: of the finished directory.

    forecast: what the stage will write and take, None where no config was given or nothing is predicted.
    """

    stage: str
    directory: str
    why: str | None
    bytes: int
    seconds: float | None
    forecast: Forecast | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "directory": self.directory,
            "runs": self.why is not None,
            "why": self.why,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "forecast": self.forecast.to_json() if self.forecast else None,
        }


def plan(recipe: Recipe, config: Mapping[str, Any] | None = None, device: str | None = None) -> list[Planned]:
    """What `run` would do and why, without loading weights. Raises on inputs that are not there.

    config: of the base model, for the forecasts (`forecast.config_of`); device: of the forecasts, cuda or cpu.
    """
    refuse_early(recipe)
    ahead = forecast(recipe, config, device) if config else {}
    found: list[Planned] = []
    renewed: set[str] = set()
    for stage, settings in stages_of(recipe):
        directory = recipe.directory / stage.directory
        waiting = [p for p in stage.parents(recipe) if p in renewed]
        if waiting:
            why: str | None = f"after {max(waiting)}"
        else:
            why = artifact.why_stale(directory, settings, parents_of(stage, recipe))
        if why is not None:
            renewed.add(stage.directory)
        done = artifact.read_stage(directory)
        size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) if directory.is_dir() else 0
        seconds = done["seconds"] if done else None
        found.append(Planned(stage.name, stage.directory, why, size, seconds, ahead.get(stage.name)))
    return found


def stages_of(recipe: Recipe) -> list[tuple[Stage, dict[str, Any]]]:
    """The stages a recipe asks for, with the settings each depends on."""
    pairs = ((stage, resolved(stage, recipe)) for stage in PIPELINE)
    return [(stage, settings) for stage, settings in pairs if settings is not None]


def run(recipe: Recipe, options: Mapping[str, Any] | None = None) -> list[str]:
    """Run every stage that is missing or out of date, in order. Returns the names of the stages that ran."""
    refuse_early(recipe)
    ran = []
    for stage, _ in stages_of(recipe):
        if run_stage(stage, recipe, options or {}):
            ran.append(stage.name)
    return ran


def run_one(name: str, recipe: Recipe, options: Mapping[str, Any]) -> bool:
    """Run one stage by name. Raises RecipeError where the recipe lacks it, ArtifactError where a parent is missing."""
    stage = by_name(name)
    if resolved(stage, recipe) is None:
        raise RecipeError(f"this recipe has no {name} section.", f"Add `{name}:` to it.")
    refuse_early(recipe)
    return run_stage(stage, recipe, options)


def refuse_early(recipe: Recipe) -> None:
    """Raise RecipeError for names that only a later stage would look up, perhaps after hours of training."""
    device_of(recipe.device)
    refuse_names(recipe)


def refuse_names(recipe: Recipe) -> None:
    """Raise RecipeError for layers and metrics that do not exist."""
    for text in recipe.rank.layers if recipe.rank else ():
        importance.parse_layer(text)
    for metric in recipe.evaluate.metrics if recipe.evaluate else ():
        metrics.canonical(metric)


def run_stage(stage: Stage, recipe: Recipe, options: Mapping[str, Any]) -> bool:
    """Run a stage if it is not done. Returns whether it ran. Raises ArtifactError on a full disk, keeping progress."""
    settings = resolved(stage, recipe)
    assert settings is not None
    directory = recipe.directory / stage.directory
    parents = parents_of(stage, recipe)
    why = artifact.why_stale(directory, settings, parents)
    if why is None:
        note(f"{stage.name}: done ({directory})")
        return False
    note(f"{stage.name}: {why}; writing {directory}")
    device = str(device_of(recipe.device))
    facts = {"stage": stage.name, "recipe": recipe.name, "seed": recipe.seed, "device": device}
    try:
        with (
            artifact.locked(recipe.directory),
            artifact.building(directory, settings, parents, facts, stage.late) as (out, extra),
        ):
            stage.run(Job(recipe, out, extra, options))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full(directory) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise ArtifactError(f"{error.filename}: {error.strerror}.", "Change its rights, or `out`.") from error
        raise
    except Exception as error:
        # libraries wrap a full disk in errors of their own
        if "No space left on device" not in str(error):
            raise
        raise full(directory) from error
    return True


def full(directory: Path) -> ArtifactError:
    return ArtifactError(
        f"the disk is full while writing {artifact.partial_of(directory)}.",
        "Free some space (the run's cache/ can go) and run the same command again: it goes on from there.",
    )


def by_name(name: str) -> Stage:
    """Raises RecipeError for an unknown stage, with the near match."""
    for stage in PIPELINE:
        if stage.name == name:
            return stage
    names = [stage.name for stage in PIPELINE]
    near = difflib.get_close_matches(name, names, 1)
    raise RecipeError(f"there is no stage '{name}'.", f"Did you mean {near[0]}?" if near else f"There are: {names}.")


def check(recipe: Recipe) -> list[str]:
    """Compare every finished artefact with its stage.json. Returns problems in words; empty where all is well."""
    problems = []
    for stage, _ in stages_of(recipe):
        directory = recipe.directory / stage.directory
        done = artifact.read_stage(directory)
        if done is None:
            continue
        now = artifact.outputs(directory)
        for name in sorted({*now, *done["outputs"]}):
            if now.get(name) != done["outputs"].get(name):
                state = "missing" if name not in now else "changed" if name in done["outputs"] else "not of this stage"
                problems.append(f"{directory / name}: {state}")
    return problems
