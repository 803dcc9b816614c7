"""The stages of a report: how their trainings went, what they took, what format mixed came to, files to open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sordino.config import chain, records
from sordino.config.run_layout import AUDIT, LOGS, MATCH_LOG, PAGE, QAT, REPORT, SWEEP, SWEEP_PAGE, RunLayout
from sordino.config.schema import Recipe
from sordino.formats.registry import MIXED
from sordino.pipeline import runner
from sordino.report.model import Mixture, StageCost, Training
from sordino.runtime import files

RECIPE_FILE = "recipe.yaml"  # beside the page: the resolved recipe


def trainings(recipe: Recipe) -> tuple[Training, ...]:
    """Every training whose log is there, in the order of the chain."""
    models = [model for model in chain.CHAIN if model.directory and chain.makes(recipe, model)]
    return tuple(
        training(file, model.label)
        for model in models
        for file in sorted((recipe.directory / model.directory).glob(LOGS), key=_number)
    )


def training(file: Path, label: str) -> Training:
    """A log as `fitting.fit` writes it."""
    rows = files.read_jsonl(file)
    number = _number(file)
    if file.name == MATCH_LOG:
        label = f"{label}: encoder states"
    return Training(
        f"{label}, after removal {number}" if number else label,
        tuple((row["step"], row["loss"]) for row in rows if row.get("loss") is not None),
        tuple((row["step"], row["dev_loss"]) for row in rows if row.get("dev_loss") is not None),
    )


def _number(log: Path) -> int:
    """Of a removal: 2 of log-2.jsonl, 0 of log.jsonl."""
    digits = log.stem.partition("-")[2]
    return int(digits) if digits.isdigit() else 0


def costs(recipe: Recipe) -> tuple[StageCost, ...]:
    """What the finished stages took, as their records say; the report itself is not finished."""
    stages = [stage for stage, _ in runner.stages_of(recipe) if stage.name not in ("report", "sweep")]
    done = [(stage.name, records.read_stage(recipe.directory / stage.directory)) for stage in stages]
    return tuple(
        StageCost(name, record["seconds"], record.get("peak_memory_bytes"), record.get("device", ""))
        for name, record in done
        if record
    )


def mixture(recipe: Recipe) -> Mixture | None:
    """What was chosen for a budget of bytes, where a recipe has one."""
    if recipe.qat and recipe.qat.format == MIXED:
        audit = recipe.directory / QAT / AUDIT
    elif recipe.export and MIXED in recipe.export.formats:
        audit = RunLayout(recipe.directory).audit(MIXED)
    else:
        return None
    made: dict[str, Any] = files.read_json(audit)[MIXED]
    return Mixture(made["budget_bytes"], made["predicted_bytes"], made["bits"], tuple(made["dropped"]))


def report_links(recipe: Recipe) -> dict[str, str]:
    """Files that the run's page opens, by their address from it."""
    links = {"recipe": RECIPE_FILE, "scores.json": "scores.json", "size.json": "size.json", "speed.json": "speed.json"}
    if recipe.sweep or (recipe.directory / SWEEP / SWEEP_PAGE).is_file():
        links["sweep: bytes against quality"] = f"../{SWEEP}/{SWEEP_PAGE}"
    return links


def sweep_links(recipe: Recipe) -> dict[str, str]:
    """Likewise, of the sweep's page."""
    return ({"report of the run": f"../{REPORT}/{PAGE}"} if recipe.report else {}) | {"sweep.json": "sweep.json"}


def recipe_file(recipe: Recipe) -> str:
    """The recipe beside the page, as a command names it; empty where the run has no report."""
    return str(recipe.directory / REPORT / RECIPE_FILE) if recipe.report else ""
