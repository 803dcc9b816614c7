"""translate: every model of the chain translates the test split, timed from the waveform to the text.

A system that was finished before a kill is not run again, nor one that other systems were translated beside.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.config import chain, records
from sordino.config.run_layout import DATA, EXPORT, OUTPUTS, SPEEDS_FILE, RunLayout, split_file
from sordino.config.schema import Recipe, TranslateSection
from sordino.pipeline.artifact import Parent
from sordino.pipeline.device import device_type
from sordino.pipeline.parents import hash_of_formats, parents_of
from sordino.pipeline.stage import Grown, Job, Stage
from sordino.runtime import files


def run(job: Job, section: TranslateSection) -> None:
    from sordino.pipeline import translating

    recipe = job.recipe
    clips = tuple(job.clips(section.split))
    labels = chain.labels(recipe)
    unchanged = systems_unchanged(recipe)
    lacking = []
    for key in chain.scored(recipe):
        directory = job.out / key
        if key in unchanged and not (directory / SPEEDS_FILE).is_file():
            take_over(job.layout.outputs / key, directory)
        if not (directory / SPEEDS_FILE).is_file():
            lacking.append(key)
    tasks = [translating.TranslateTask(recipe, section, job.model(key), clips, labels[key]) for key in lacking]
    for place, (hypotheses, speed) in translating.translate_systems(job, tasks) if tasks else ():
        directory = job.out / lacking[place]
        directory.mkdir(exist_ok=True)
        translating.write_hypotheses(directory / split_file(section.split), hypotheses)
        files.write_json(directory / SPEEDS_FILE, speed)
    job.record["device"] = files.read_json(job.out / chain.scored(recipe)[-1] / SPEEDS_FILE)["device"]


def systems_unchanged(recipe: Recipe) -> list[str]:
    """Systems whose finished translations are of the same model, clips and settings."""
    directory, settings = RunLayout(recipe.directory).outputs, STAGE.settings(recipe)
    done = records.read_stage(directory)
    if done is None or records.changed_settings(STAGE.name, done["section"], settings or {}, ("systems",)):
        return []
    before = {parent["path"]: parent["hash"] for parent in done["parents"]}
    names = [path.parent.name for path in sorted(directory.glob(f"*/{SPEEDS_FILE}"))]
    now = {parent.path: parent.hash for parent in parents_of(STAGE, recipe)}
    exports = records.read_stage(recipe.directory / EXPORT)
    if exports:  # the hash is of all formats that were asked for then
        now[EXPORT] = hash_of_formats(exports, [name for name in names if chain.entry(name) is chain.EXPORTS])

    def same(name: str) -> bool:
        path = chain.directory_of(name) or recipe.model
        return path in before and before[path] == now.get(path)

    return [name for name in names if before.get(DATA) == now[DATA] and same(name)]


def grown(recipe: Recipe, settings: Mapping[str, Any], parents: Sequence[Parent]) -> Grown:
    """As asked for, and whether every system that is there stays among those that are asked for."""
    there = {path.parent.name for path in RunLayout(recipe.directory).outputs.glob(f"*/{SPEEDS_FILE}")}
    return dict(settings), list(parents), there <= {*chain.scored(recipe)} & {*systems_unchanged(recipe)}


def take_over(finished: Path, directory: Path) -> None:
    """Copy a system's translations, its speed last, as when they are made."""
    directory.mkdir(exist_ok=True)
    for file in sorted(finished.iterdir(), key=lambda file: file.name == SPEEDS_FILE):
        shutil.copyfile(file, directory / file.name)


def extras(recipe: Recipe) -> dict[str, Any]:
    """The kind of device: the speeds are its."""
    return {"device": device_type(recipe.device)}


STAGE = Stage(
    name="translate",
    directory=OUTPUTS,
    section=lambda recipe: recipe.translate,
    parents=lambda recipe: [*dict.fromkeys(map(chain.directory_of, chain.scored(recipe))), DATA],
    run=run,
    uses=("source", "target", "prompt", "dtype", "attention", "encode_batch"),
    extras=extras,
    grown=grown,
)
