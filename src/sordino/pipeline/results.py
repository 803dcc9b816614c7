"""What a finished run found, gathered from its artefacts into the values that the report's page is made of."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

from sordino.config import chain, records
from sordino.config.run_layout import DATA, SKIPPED, RunLayout
from sordino.config.schema import Recipe
from sordino.languages import language_name
from sordino.measure.size import Size
from sordino.measure.speed import Speed
from sordino.metrics.base import Score
from sordino.metrics.health import Health
from sordino.metrics.paired import Paired
from sordino.pipeline import reported_clips, reported_stages
from sordino.pruning.criteria import higher_is_better
from sordino.pruning.layer import Layer
from sordino.pruning.ranking import Ranking
from sordino.report.advice import main_metric
from sordino.report.model import Removal, Report, System, Trial
from sordino.runtime import files


def report_of(recipe: Recipe, sound: bool = False) -> Report:
    """A run's report. sound: with the samples' audio. Raises ArtifactError where an artefact is missing."""
    assert recipe.report
    layout = RunLayout(recipe.directory)
    scores, speeds = files.read_json(layout.scores), files.read_json(layout.speeds)
    ranking = Ranking.read(layout.ranking) if recipe.rank else None
    systems = systems_of(recipe)
    metric = main_metric(systems)
    clips = reported_clips.clips_of(recipe, scores)
    texts = reported_clips.texts_of(recipe, scores["split"], [s.name for s in systems])
    scored = reported_clips.scored_clips(clips, texts, systems, metric)
    systems, lengths = reported_clips.by_length(systems, scored, metric, recipe.target)
    shown = reported_clips.samples(scored, recipe.report.samples)
    return Report(
        title=recipe.name,
        facts=facts(recipe, scores, speeds),
        systems=systems,
        trials=trials(layout, ranking) if ranking else (),
        removals=removals(ranking) if ranking else (),
        lower_is_better=not higher_is_better(recipe.criterion),
        samples=reported_clips.with_sound(shown, clips) if sound else shown,
        notes=notes(recipe, scores),
        criterion=recipe.criterion,
        groups=scores["groups"]["clips"],
        no_groups=scores["groups"]["skipped"] or "",
        lengths=lengths,
        clips=scored,
        trainings=reported_stages.trainings(recipe),
        costs=reported_stages.costs(recipe),
        splits=reported_clips.splits(recipe),
        mixture=reported_stages.mixture(recipe),
        directory=str(recipe.directory),
        recipe=reported_stages.recipe_file(recipe),
        links=reported_stages.report_links(recipe),
    )


def systems_of(recipe: Recipe) -> tuple[System, ...]:
    """The scored systems of a run, in the chain's order. Raises ArtifactError where an artefact is missing."""
    layout = RunLayout(recipe.directory)
    scores, sizes, speeds = (files.read_json(file) for file in (layout.scores, layout.sizes, layout.speeds))
    return tuple(
        system(key, entry, sizes[key], speeds[key], chain.reference(recipe, key).path)
        for key, entry in scores["systems"].items()
    )


def system(
    key: str, entry: dict[str, Any], size: dict[str, Any] | None, speed: dict[str, Any], path: str = ""
) -> System:
    """entry: of scores.json; path: of the model, where it is kept."""
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
        path=path,
        section=chain.entry(key).section if path else "",
    )


def trials(layout: RunLayout, ranking: Ranking) -> tuple[Trial, ...]:
    """Every trial of the search; the baseline (round 0) is no trial of a layer."""
    # a race scores some candidates on more and more clips: the last score stands. Swaps are no rounds.
    searched = [row for row in files.read_jsonl(layout.trials) if "without" not in row]
    rows = {(row["round"], row["scope"], row["layer"]): row for row in searched}
    order = ranking.searched or ranking.order
    return tuple(
        Trial(number, scope, index, row["score"], order[number - 1] == Layer(scope, index))
        for (number, scope, index), row in rows.items()
        if index is not None
    )


def removals(ranking: Ranking) -> tuple[Removal, ...]:
    """The search's removals with their probabilities; none where the layers were named, not searched."""
    return tuple(Removal(**removal.to_json()) for removal in ranking.removals)


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
        "date": datetime.date.today().isoformat(),
    }


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
    if recipe.translate and recipe.translate.timed is not None and recipe.translate.timed < scores["clips"]:
        lines.append(f"Speeds are of about {recipe.translate.timed} of the {scores['clips']} clips, of all lengths.")
    if recipe.prompt.example:
        lines.append("The prompt is one-shot.")
    return tuple(lines)
