"""About how long a stage will take, from what it took before: in this run, or in another one below `out`.

Never more than a guess. What this run's stage took is one whatever changed; another run counts where the work is
comparable: the same kind of device, base model and data, and settings that change its length in a way that is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sordino.config import records
from sordino.config.records import STAGE_FILE, changed_settings, completed
from sordino.config.schema import Recipe
from sordino.errors import ArtifactError
from sordino.pipeline.device import device_type
from sordino.pipeline.stage import Stage

# settings that change what a stage makes, not how long it works
IDLE = {"seed", "lr", "scheduler", "warmup_ratio", "weight_decay", "max_grad_norm", "name", "target"}
LINEAR = ("epochs", "remove")  # a training is as long as its epochs are many; a ranking, at the most, as its removals


def expected(recipe: Recipe, stage: Stage[Any], settings: Mapping[str, Any]) -> float | None:
    """Seconds; None where nothing comparable was measured."""
    kind = device_type(recipe.device)
    mine = _record(recipe.directory / stage.directory)
    if mine and _kind(mine) == kind:
        return scaled(mine, stage, settings) or float(mine["seconds"])
    others = (directory for directory in _elsewhere(recipe, stage.directory) if _same_inputs(recipe, directory))
    finished = (record for record in map(_record, others) if record and _kind(record) == kind)
    return next(filter(None, (scaled(record, stage, settings) for record in finished)), None)


def scaled(record: Mapping[str, Any], stage: Stage[Any], settings: Mapping[str, Any]) -> float | None:
    """What a finished stage took, for other settings; None where they are not comparable."""
    then, now = completed(stage.name, record["section"]), completed(stage.name, settings)
    changed = changed_settings(stage.name, record["section"], settings, {*IDLE, *stage.resumable} - {*LINEAR})
    seconds = float(record["seconds"])
    if len(changed) == 1 and changed[0] in LINEAR and then[changed[0]] and now[changed[0]] and not now.get("max_steps"):
        return seconds * float(now[changed[0]]) / float(then[changed[0]])
    return None if changed else seconds


def _elsewhere(recipe: Recipe, name: str) -> Iterator[Path]:
    """The same stage's directories in other runs, the latest first."""
    stages = [file for file in Path(recipe.out).glob(f"*/{name}/{STAGE_FILE}") if file.parents[1] != recipe.directory]
    yield from (file.parent for file in sorted(stages, key=lambda file: (-file.stat().st_mtime, file)))


def _same_inputs(recipe: Recipe, directory: Path) -> bool:
    """Whether all that a stage of another run comes from, outside that run, is this recipe's own."""
    data = recipe.data
    sections = [section for section in (data, data.extra if data else None) if section is not None]
    return _outside(directory) <= {recipe.model, *(section.path for section in sections)}


def _outside(directory: Path) -> set[str]:
    """Paths of the base model and the corpora that a stage, or its parents in its run, were made from."""
    record, run = _record(directory), directory.parent
    paths = [parent["path"] for parent in record["parents"]] if record else []
    inside = [path for path in paths if (run / path / STAGE_FILE).is_file()]
    return {*paths} - {*inside} | {path for parent in inside for path in _outside(run / parent)}


def _record(directory: Path) -> dict[str, Any] | None:
    """stage.json of a finished stage; None also for one that cannot be read, which says nothing here."""
    try:
        return records.read_stage(directory)
    except ArtifactError:
        return None


def _kind(record: Mapping[str, Any]) -> str:
    return str(record.get("device", "")).partition(":")[0]
