"""PIPELINE: the whole method, top to bottom; and how a recipe is run, planned and checked against it.

corpus ─ prepare ─ finetune ─ rank ─ prune ─┐
                      └─ pseudolabel ───────┴─ distil ─ qlora ─ merge ─ trim ─ qat ─ export
translate ─ evaluate ─ report: every model of the chain
sweep: smaller forms of them, bytes against quality
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sordino.config import records
from sordino.config.run_layout import CACHE
from sordino.config.schema import Recipe
from sordino.errors import RecipeError, SordinoError, near_match
from sordino.models import registry
from sordino.pipeline import artifact, durations, launching, leftovers, machine, preflight
from sordino.pipeline.device import device_of
from sordino.pipeline.forecast import Forecast, forecast
from sordino.pipeline.locks import run_locked
from sordino.pipeline.parents import parents_of
from sordino.pipeline.stage import Job, Stage
from sordino.runtime.environment import launched
from sordino.runtime.progress import note

# in the order in which they run; a stage file defines STAGE
STAGES = (
    "prepare", "finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge", "trim", "qat", "export",
    "translate", "evaluate", "report", "sweep",
)  # fmt: skip


@functools.cache
def pipeline() -> tuple[Stage[Any], ...]:
    """Every stage. Imported when asked for, since stages stand above what runs them."""
    return tuple(importlib.import_module(f"sordino.stages.{name}").STAGE for name in STAGES)


@dataclass(frozen=True)
class Planned:
    """One line of the plan. why: None where the stage is done; bytes: of the finished directory.

    seconds: that the finished directory took, or the one that will be replaced; grows: whether that stays whole;
    agreed: whether unfinished work of this request goes on, which nobody began unasked; replaces: neither.
    about: seconds that it will probably take, None where it is done or nothing comparable was measured.
    forecast: what the stage will write and take, None where no config was given or nothing is predicted.
    """

    stage: str
    directory: str
    why: str | None
    bytes: int
    seconds: float | None
    replaces: bool = False
    grows: bool = False
    agreed: bool = False
    about: float | None = None
    forecast: Forecast | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "directory": self.directory,
            "runs": self.why is not None,
            "why": self.why,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "replaces": self.replaces,
            "about": self.about,
            "forecast": self.forecast.to_json() if self.forecast else None,
        }


Allow = Callable[[Sequence[Planned]], None]  # raises where finished work must not be replaced


def plan(recipe: Recipe, config: Mapping[str, Any] | None = None, device: str | None = None) -> list[Planned]:
    """What `run` would do and why, without loading weights. Raises on inputs that are not there.

    config: of the base model, for the forecasts (`forecast.config_of`); device: of the forecasts, cuda or cpu.
    """
    preflight.refuse_plan(recipe)
    # a family whose shapes nobody has written down is planned without a forecast
    described = config is not None and registry.of_config(config).tensors.tables
    ahead = forecast(recipe, config, device) if config and described else {}
    stages = {stage.name: (stage, settings) for stage, settings in stages_of(recipe)}
    return [
        dataclasses.replace(
            line,
            forecast=ahead.get(line.stage),
            about=durations.expected(recipe, *stages[line.stage]) if line.why is not None else None,
        )
        for line in lines_of(recipe)
    ]


def lines_of(recipe: Recipe) -> list[Planned]:
    """The plan without forecasts."""
    lines: list[Planned] = []
    renewed: dict[str, Planned] = {}
    for stage, settings in stages_of(recipe):
        line = _line(stage, settings, recipe, [renewed[p] for p in stage.parents(recipe) if p in renewed])
        if line.why is not None:
            renewed[stage.directory] = line
        lines.append(line)
    return lines


def _line(stage: Stage[Any], settings: Mapping[str, Any], recipe: Recipe, waiting: Sequence[Planned] = ()) -> Planned:
    """waiting: for what will be made anew before."""
    directory = recipe.directory / stage.directory
    done = records.read_stage(directory)
    why = f"after {max(line.directory for line in waiting)}" if waiting else None
    grows, agreed = False, any(line.agreed for line in waiting)
    if all(line.grows for line in waiting):
        settings, parents, grows = stage.grown(recipe, settings, parents_of(stage, recipe))
        why = why or artifact.why_stale(directory, settings, parents)
        goes_on = artifact.why_not_resumed(directory, settings, parents, stage.resumable, stage.name) is None
        agreed = agreed or (goes_on and (leftovers.partial_of(directory) / leftovers.REQUEST_FILE).is_file())
    size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) if directory.is_dir() else 0
    seconds = done["seconds"] if done else None
    replaces = why is not None and done is not None and not (stage.derived or grows or agreed)
    return Planned(stage.name, stage.directory, why, size, seconds, replaces, grows and done is not None, agreed)


def stages_of(recipe: Recipe) -> list[tuple[Stage[Any], dict[str, Any]]]:
    """The stages a recipe asks for, with the settings each depends on."""
    pairs = ((stage, stage.settings(recipe)) for stage in pipeline())
    return [(stage, settings) for stage, settings in pairs if settings is not None]


def run(recipe: Recipe, options: Mapping[str, Any] | None = None, allow: Allow | None = None) -> list[str]:
    """Run every stage that is missing or out of date, in order. Returns the names of the stages that ran.

    allow: is asked with the lines of finished work that will be replaced, where there is any.
    """
    stages = stages_of(recipe)
    if _follows(recipe, [stage for stage, _ in stages], options or {}):
        return []
    preflight.refuse(recipe)
    for error in preflight.problems(recipe):
        raise error
    settle(recipe)
    _allowed(recipe, lines_of(recipe), allow)
    places = (f"[{number}/{len(stages)}] " for number in range(1, len(stages) + 1))
    ran = [run_stage(*pair, recipe, options or {}, place) for pair, place in zip(stages, places, strict=True)]
    return [stage.name for (stage, _), did in zip(stages, ran, strict=True) if did]


def run_one(name: str, recipe: Recipe, options: Mapping[str, Any], allow: Allow | None = None) -> bool:
    """Run one stage by name. Raises RecipeError where the recipe lacks it, ArtifactError where a parent is missing.

    allow: as of `run`.
    """
    stage = by_name(name)
    settings = stage.settings(recipe)
    if settings is None:
        raise RecipeError(f"this recipe has no {name} section.", f"Add `{name}:` to it.")
    if _follows(recipe, [stage], options):
        return False
    preflight.refuse(recipe)
    settle(recipe)
    _allowed(recipe, [_line(stage, settings, recipe)], allow)
    return run_stage(stage, settings, recipe, options)


def _follows(recipe: Recipe, stages: Sequence[Stage[Any]], options: Mapping[str, Any]) -> bool:
    """Join the processes that a launcher started. Returns whether this was another than the first, and is done."""
    rank, count = launched()
    if count == 1:
        return False
    from sordino.runtime import world

    launching.refuse(recipe)
    world.join(device_of(recipe.device))
    if rank:
        launching.follow(stages, recipe, options)
    return rank > 0


def run_together(name: str, recipe: Recipe) -> None:
    """Run a stage in the processes that a launcher started; what `run` does before has been done."""
    stage = by_name(name)
    settings = stage.settings(recipe)
    assert settings is not None
    if not _follows(recipe, [stage], {}):
        run_stage(stage, settings, recipe, {})


def _allowed(recipe: Recipe, lines: Sequence[Planned], allow: Allow | None) -> None:
    """Raise ArtifactError where a stage to come finds strangers' files in its place, and as `allow` does."""
    for line in lines:
        if line.why is not None:
            leftovers.refuse_foreign(recipe.directory / line.directory)
    replaced = [line for line in lines if line.replaces]
    if replaced and allow is not None:
        allow(replaced)


def settle(recipe: Recipe) -> None:
    """Put finished stages into place where a kill came in between."""
    for stage, _ in stages_of(recipe):
        artifact.settle(recipe.directory / stage.directory)


def run_stage(
    stage: Stage[Any], settings: Mapping[str, Any], recipe: Recipe, options: Mapping[str, Any], place: str = ""
) -> bool:
    """Run a stage if it is not done. settings: that it depends on; place: among all, for people. Returns whether it
    ran.

    Raises ArtifactError where disk or memory is full, keeping progress.
    """
    directory = recipe.directory / stage.directory
    settings, parents, _ = stage.grown(recipe, settings, parents_of(stage, recipe))
    why = artifact.why_stale(directory, settings, parents)
    if why is None:
        note(f"{place}{stage.name}: done ({directory})")
        launching.tell(stage.name, None)
        return False
    note(f"{place}{stage.name}: {why}; writing {directory}")
    other = artifact.why_not_resumed(directory, settings, parents, stage.resumable, stage.name)
    if other and leftovers.foreign(leftovers.partial_of(directory)) is None:
        note(f"  {leftovers.partial_of(directory)} {other}, and goes")
    if launching.spreads(stage.name, recipe):
        launching.run(stage, recipe)
        return True
    device = str(device_of(recipe.device))
    facts = {"stage": stage.name, "recipe": recipe.name, "seed": recipe.seed, "device": device}
    try:
        with run_locked(recipe.directory, stage.name, stage.beside):
            leftovers.clear_cache(recipe.directory / CACHE)
            with artifact.building(directory, settings, parents, facts, stage.resumable) as (out, extra):
                launching.tell(stage.name, out)
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
            if os.path.lexists(directory):
                problems.append(f"{directory}: no finished stage (it has no stage.json)")
            continue
        differences = artifact.differences(directory, done)
        problems += [f"{directory / name}: {state}" for name, state in differences.items()]
    return problems
