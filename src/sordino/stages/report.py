"""report: one offline HTML page of what the run found, beside its JSON files."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
from typing import Any

from sordino.config import records
from sordino.config.schema import Recipe
from sordino.data import manifest
from sordino.languages import language_name
from sordino.measure.size import Size
from sordino.measure.speed import Speed
from sordino.metrics.base import Score
from sordino.metrics.health import Health
from sordino.metrics.paired import Paired
from sordino.pipeline.job import DATA, EXPORT, OUTPUTS, RANKING, REPORT, SCORES, TRIALS, Job, Stage
from sordino.pipeline.mixed_precision import MIXED, described
from sordino.pruning.criteria import higher_is_better
from sordino.report.model import Removal, Report, Sample, System, Trial
from sordino.report.page import render
from sordino.report.rows import megabytes
from sordino.runtime import files

FILES = ("scores.json", "size.json", "speed.json")


def run(job: Job) -> None:
    for name in FILES:
        shutil.copyfile(job.run_dir / SCORES / name, job.out / name)
    files.write_text(job.out / "report.html", render(build(job.recipe)))


def build(recipe: Recipe) -> Report:
    """Gather a run's finished artefacts. Raises ArtifactError where one is missing."""
    run_dir = recipe.directory
    scores, sizes, speeds = (files.read_json(run_dir / SCORES / name) for name in FILES)
    keys = list(scores["systems"])
    return Report(
        title=recipe.name,
        facts=facts(recipe, scores, speeds),
        systems=tuple(system(key, scores["systems"][key], sizes[key], speeds[key]) for key in keys),
        trials=trials(recipe),
        removals=removals(recipe),
        lower_is_better=not higher_is_better(recipe.criterion),
        samples=samples(recipe, scores["split"], keys),
        notes=notes(recipe, scores),
        criterion=recipe.criterion,
        groups=scores["groups"]["clips"],
        no_groups=scores["groups"]["skipped"] or "",
    )


def system(key: str, entry: dict[str, Any], size: dict[str, Any] | None, speed: dict[str, Any]) -> System:
    model = speed.get("model", {})
    return System(
        name=key,
        label=entry["label"],
        decoder_layers=model.get("decoder_layers"),
        size=Size.from_json(size) if size else None,
        scores={name: Score.from_json(s) for name, s in entry["scores"].items()},
        retention=entry["retention"],
        speed=Speed.from_json({k: v for k, v in speed.items() if k != "model"}),
        health=Health.from_json(entry["health"]),
        significance={
            name: Paired(**found) for name, found in entry.get("significance", {}).items() if name != "against"
        },
        groups=entry.get("groups", {}),
        cleaned={name: Score.from_json(s) for name, s in entry.get("cleaned", {}).get("scores", {}).items()},
        cleaned_counts=entry.get("cleaned", {}).get("counts", {}),
    )


def trials(recipe: Recipe) -> tuple[Trial, ...]:
    """Every trial of the search; the baseline (round 0) is no trial of a layer."""
    if recipe.rank is None:
        return ()
    order = files.read_json(recipe.directory / RANKING / "ranking.json")["order"]
    # a race scores some candidates on more and more clips: the last score stands
    rows = {(r["round"], r["scope"], r["layer"]): r for r in files.read_jsonl(recipe.directory / RANKING / TRIALS)}
    return tuple(
        Trial(r["round"], r["scope"], r["layer"], r["score"], order[r["round"] - 1] == f"{r['scope']}.{r['layer']}")
        for r in rows.values()
        if r["layer"] is not None
    )


def removals(recipe: Recipe) -> tuple[Removal, ...]:
    """The search's removals with their probabilities; none where the layers were named, not searched."""
    if recipe.rank is None:
        return ()
    found = files.read_json(recipe.directory / RANKING / "ranking.json")["removals"]
    return tuple(Removal(**{**row, "interval": tuple(row["interval"])}) for row in found)


def samples(recipe: Recipe, split: str, keys: list[str]) -> tuple[Sample, ...]:
    """Clips side by side: first those on which the systems differ most, in the order of the split."""
    assert recipe.report
    clips = manifest.read(recipe.directory / DATA / f"{split}.jsonl")
    texts = {
        key: {r["id"]: r["text"] for r in files.read_jsonl(recipe.directory / OUTPUTS / key / f"{split}.jsonl")}
        for key in keys
    }
    found = [
        Sample(c.id, c.source_text or "", c.target_text or "", {key: texts[key][c.id] for key in keys}) for c in clips
    ]
    ranked = sorted(range(len(found)), key=lambda i: (-len(set(found[i].hypotheses.values())), i))
    return tuple(found[i] for i in sorted(ranked[: recipe.report.samples]))


def facts(recipe: Recipe, scores: dict[str, Any], speeds: dict[str, Any]) -> dict[str, str]:
    stage = records.read_stage(recipe.directory / OUTPUTS)
    assert stage
    first = next(iter(speeds.values()))
    known = stage["versions"]
    return {
        "translation": f"{language_name(recipe.source)} to {language_name(recipe.target)}",
        "scored on": f"{scores['clips']} clips of the {scores['split']} split",
        "base model": recipe.model,
        "seed": str(recipe.seed),
        "device": f"{first['device']} ({platform.machine()}, {os.cpu_count()} cores), {first['model']['dtype']}",
        "versions": ", ".join(f"{name} {known[name]}" for name in known),
        **mixed_precision(recipe),
        "date": datetime.date.today().isoformat(),
    }


def mixed_precision(recipe: Recipe) -> dict[str, str]:
    """What was chosen for a budget of bytes, where a recipe has one."""
    if not recipe.export or MIXED not in recipe.export.formats:
        return {}
    mixed = files.read_json(recipe.directory / EXPORT / MIXED / "audit.json")[MIXED]
    gone = f"; without {', '.join(mixed['dropped'])}" if mixed["dropped"] else ""
    budget = f"{megabytes(mixed['predicted_bytes'])} of {megabytes(mixed['budget_bytes'])} MB"
    return {"mixed precision": f"{budget}: {described(mixed['bits'])}{gone}"}


def notes(recipe: Recipe, scores: dict[str, Any]) -> tuple[str, ...]:
    """What a reader must know before believing a number."""
    found = []
    data = records.read_stage(recipe.directory / DATA)
    if data and data.get("leaking_split"):
        found.append("The split is random by segment: clips of one talk stand on both sides, so scores are too high.")
    if data and data.get("skipped"):
        found.append(
            f"{data['skipped']} rows of the corpus could not be used and were left out (10-data/skipped.jsonl)."
        )
    if "teacher" not in scores["systems"]:
        found.append("There is no teacher in this run, so no retention is given.")
    if recipe.qlora and recipe.qlora.quantize == "nf4" and "adapter" in scores["systems"]:
        found.append("The adapter is weighed together with the 16-bit base it needs; it runs on that base in 4 bits.")
    if recipe.prompt.example:
        found.append("The prompt is one-shot.")
    return tuple(found)


STAGE = Stage(
    name="report",
    directory=REPORT,
    section=lambda recipe: recipe.report if recipe.translate and recipe.evaluate else None,
    parents=lambda recipe: [SCORES, OUTPUTS, DATA, *([RANKING] if recipe.rank else [])],
    run=run,
    uses=("name", "source", "target", "model", "seed"),
)
