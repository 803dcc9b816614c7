"""What a finished run found, gathered from its artefacts into the values that the report's page is made of."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from typing import Any

from sordino.config import chain, records
from sordino.config.run_layout import DATA, SKIPPED, RunLayout
from sordino.config.schema import Recipe
from sordino.data import manifest
from sordino.formats.registry import MIXED
from sordino.languages import language_name
from sordino.measure.size import Size
from sordino.measure.speed import Speed
from sordino.metrics.base import Score
from sordino.metrics.health import Health
from sordino.metrics.paired import Paired
from sordino.pruning.criteria import higher_is_better
from sordino.pruning.layer import Layer
from sordino.pruning.ranking import Ranking
from sordino.report.lines import bits_line
from sordino.report.model import Removal, Report, Sample, System, Trial
from sordino.report.rows import megabytes
from sordino.runtime import files


def report_of(recipe: Recipe) -> Report:
    """A run's report. Raises ArtifactError where an artefact is missing."""
    layout = RunLayout(recipe.directory)
    scores, sizes, speeds = (files.read_json(file) for file in (layout.scores, layout.sizes, layout.speeds))
    keys = list(scores["systems"])
    ranking = Ranking.read(layout.ranking) if recipe.rank else None
    return Report(
        title=recipe.name,
        facts=facts(recipe, scores, speeds),
        systems=tuple(system(key, scores["systems"][key], sizes[key], speeds[key]) for key in keys),
        trials=trials(layout, ranking) if ranking else (),
        removals=removals(ranking) if ranking else (),
        lower_is_better=not higher_is_better(recipe.criterion),
        samples=samples(recipe, scores["split"], keys),
        notes=notes(recipe, scores),
        criterion=recipe.criterion,
        groups=scores["groups"]["clips"],
        no_groups=scores["groups"]["skipped"] or "",
    )


def system(key: str, entry: dict[str, Any], size: dict[str, Any] | None, speed: dict[str, Any]) -> System:
    """entry: of scores.json."""
    model = speed.get("model", {})
    tests = {name: test for name, test in entry.get("significance", {}).items() if name != "against"}
    cleaned = entry.get("cleaned", {})
    return System(
        name=key,
        label=entry["label"],
        decoder_layers=model.get("decoder_layers"),
        size=Size.from_json(size) if size else None,
        scores={name: Score.from_json(s) for name, s in entry["scores"].items()},
        retention=entry["retention"],
        speed=Speed.from_json({k: v for k, v in speed.items() if k != "model"}),
        health=Health.from_json(entry["health"]),
        significance={name: Paired(**test) for name, test in tests.items()},
        groups=entry.get("groups", {}),
        cleaned={name: Score.from_json(s) for name, s in cleaned.get("scores", {}).items()},
        cleaned_counts=cleaned.get("counts", {}),
    )


def trials(layout: RunLayout, ranking: Ranking) -> tuple[Trial, ...]:
    """Every trial of the search; the baseline (round 0) is no trial of a layer."""
    # a race scores some candidates on more and more clips: the last score stands
    rows = {(row["round"], row["scope"], row["layer"]): row for row in files.read_jsonl(layout.trials)}
    return tuple(
        Trial(number, scope, index, row["score"], ranking.order[number - 1] == Layer(scope, index))
        for (number, scope, index), row in rows.items()
        if index is not None
    )


def removals(ranking: Ranking) -> tuple[Removal, ...]:
    """The search's removals with their probabilities; none where the layers were named, not searched."""
    return tuple(Removal(**removal.to_json()) for removal in ranking.removals)


def samples(recipe: Recipe, split: str, keys: Sequence[str]) -> tuple[Sample, ...]:
    """Clips side by side: first those on which the systems differ most, in the order of the split."""
    assert recipe.report
    layout = RunLayout(recipe.directory)
    texts = {key: {row["id"]: row["text"] for row in files.read_jsonl(layout.hypotheses(key, split))} for key in keys}
    rows = [
        Sample(clip.id, clip.source_text or "", clip.target_text or "", {key: texts[key][clip.id] for key in keys})
        for clip in manifest.read(layout.manifest(split))
    ]
    ranked = sorted(range(len(rows)), key=lambda i: (-len(set(rows[i].hypotheses.values())), i))
    return tuple(rows[i] for i in sorted(ranked[: recipe.report.samples]))


def facts(recipe: Recipe, scores: dict[str, Any], speeds: dict[str, Any]) -> dict[str, str]:
    """What the page says of the run as a whole."""
    stage = records.read_stage(RunLayout(recipe.directory).outputs)
    assert stage
    first = next(iter(speeds.values()))
    versions = stage["versions"]
    return {
        "translation": f"{language_name(recipe.source)} to {language_name(recipe.target)}",
        "scored on": f"{scores['clips']} clips of the {scores['split']} split",
        "base model": recipe.model,
        "seed": str(recipe.seed),
        "device": f"{first['device']} ({platform.machine()}, {os.cpu_count()} cores), {first['model']['dtype']}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        **mixed_precision(recipe),
        "date": datetime.date.today().isoformat(),
    }


def mixed_precision(recipe: Recipe) -> dict[str, str]:
    """What was chosen for a budget of bytes, where a recipe has one."""
    if not recipe.export or MIXED not in recipe.export.formats:
        return {}
    mixed = files.read_json(RunLayout(recipe.directory).audit(MIXED))[MIXED]
    gone = f"; without {', '.join(mixed['dropped'])}" if mixed["dropped"] else ""
    budget = f"{megabytes(mixed['predicted_bytes'])} of {megabytes(mixed['budget_bytes'])} MB"
    return {"mixed precision": f"{budget}: {bits_line(mixed['bits'])}{gone}"}


def notes(recipe: Recipe, scores: dict[str, Any]) -> tuple[str, ...]:
    """What a reader must know before believing a number."""
    lines = []
    data = records.read_stage(RunLayout(recipe.directory).data)
    if data and data.get("leaking_split"):
        lines.append("The split is random by segment: clips of one talk stand on both sides, so scores are too high.")
    if data and data.get("skipped"):
        lines.append(f"{data['skipped']} rows of the corpus could not be used and were left out ({DATA}/{SKIPPED}).")
    if chain.TEACHER not in scores["systems"]:
        lines.append("There is no teacher in this run, so no retention is given.")
    if recipe.qlora and recipe.qlora.quantize == "nf4" and chain.ADAPTER in scores["systems"]:
        lines.append("The adapter is weighed together with the 16-bit base it needs; it runs on that base in 4 bits.")
    if recipe.prompt.example:
        lines.append("The prompt is one-shot.")
    return tuple(lines)
