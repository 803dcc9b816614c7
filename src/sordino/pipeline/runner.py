"""PIPELINE: the whole method, top to bottom; and how a recipe is run, planned and checked against it.

corpus ─ prepare ─ finetune ─ rank ─ prune ─┐
                      └─ pseudolabel ───────┴─ distil ─ qlora ─ merge ─ trim ─ export
translate ─ evaluate ─ report: every model of the chain
sweep: smaller forms of them, bytes against quality
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sordino.config import records
from sordino.config.run_layout import CACHE
from sordino.config.schema import Recipe
from sordino.errors import RecipeError, SordinoError, near_match
from sordino.models import registry
from sordino.pipeline import artifact, leftovers, machine, preflight
from sordino.pipeline.device import device_of
from sordino.pipeline.forecast import Forecast, forecast
from sordino.pipeline.parents import parents_of
from sordino.pipeline.stage import Job, Stage
from sordino.runtime.progress import note

# in the order in which they run; a stage file defines STAGE
STAGES = (
    "prepare", "finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge", "trim", "export", "translate",
    "evaluate", "report", "sweep",
)  # fmt: skip


@functools.cache
def pipeline() -> tuple[Stage[Any], ...]:
    """Every stage. Imported when asked for, since stages stand above what runs them."""
    return tuple(importlib.import_module(f"sordino.stages.{name}").STAGE for name in STAGES)


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
    preflight.refuse(recipe)
    # a family whose shapes nobody has written down is planned without a forecast
    described = config is not None and registry.of_config(config).tensors.tables
    ahead = forecast(recipe, config, device) if config and described else {}
    lines: list[Planned] = []
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
        done = records.read_stage(directory)
        size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) if directory.is_dir() else 0
        seconds = done["seconds"] if done else None
        lines.append(Planned(stage.name, stage.directory, why, size, seconds, ahead.get(stage.name)))
    return lines


def stages_of(recipe: Recipe) -> list[tuple[Stage[Any], dict[str, Any]]]:
    """The stages a recipe asks for, with the settings each depends on."""
    pairs = ((stage, stage.settings(recipe)) for stage in pipeline())
    return [(stage, settings) for stage, settings in pairs if settings is not None]


def run(recipe: Recipe, options: Mapping[str, Any] | None = None) -> list[str]:
    """Run every stage that is missing or out of date, in order. Returns the names of the stages that ran."""
    preflight.refuse(recipe)
    settle(recipe)
    ran = []
    for stage, settings in stages_of(recipe):
        if run_stage(stage, settings, recipe, options or {}):
            ran.append(stage.name)
    return ran


def run_one(name: str, recipe: Recipe, options: Mapping[str, Any]) -> bool:
    """Run one stage by name. Raises RecipeError where the recipe lacks it, ArtifactError where a parent is missing."""
    stage = by_name(name)
    settings = stage.settings(recipe)
    if settings is None:
        raise RecipeError(f"this recipe has no {name} section.", f"Add `{name}:` to it.")
    preflight.refuse(recipe)
    settle(recipe)
    return run_stage(stage, settings, recipe, options)


def settle(recipe: Recipe) -> None:
    """Put finished stages into place where a kill came in between."""
    for stage, _ in stages_of(recipe):
        artifact.settle(recipe.directory / stage.directory)


def run_stage(stage: Stage[Any], settings: Mapping[str, Any], recipe: Recipe, options: Mapping[str, Any]) -> bool:
    """Run a stage if it is not done. settings: that it depends on. Returns whether it ran.

    Raises ArtifactError where disk or memory is full, keeping progress.
    """
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
        with artifact.locked(recipe.directory):
            leftovers.clear_cache(recipe.directory / CACHE)
            with artifact.building(directory, settings, parents, facts, stage.resumable) as (out, extra):
                stage.run(Job(recipe, out, extra, options), stage.section(recipe))
    except SordinoError:
        raise
    except Exception as error:
        told = machine.explained(error, stage, settings, directory, device)
        if told is None:
            raise
        raise told from error
    return True


def by_name(name: str) -> Stage[Any]:
    """Raises RecipeError for an unknown stage, with the near match."""
    for stage in pipeline():
        if stage.name == name:
            return stage
    names = [stage.name for stage in pipeline()]
    near = near_match(name, names)
    raise RecipeError(f"there is no stage '{name}'.", f"Did you mean {near}?" if near else f"There are: {names}.")


def check(recipe: Recipe) -> list[str]:
    """Compare every finished artefact with its stage.json. Returns problems in words; empty where all is well."""
    problems = []
    for stage, _ in stages_of(recipe):
        directory = recipe.directory / stage.directory
        done = records.read_stage(directory)
        if done is None:
            continue
        differences = artifact.differences(directory, done)
        problems += [f"{directory / name}: {state}" for name, state in differences.items()]
    return problems
