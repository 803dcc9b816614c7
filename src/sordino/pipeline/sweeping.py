"""Make, translate, score and weigh the points of a sweep, and put them beside the chain's own systems.

A point's model is thrown away once it is scored. Finished points are kept in the run's cache under all that they
depend on, so that neither a kill nor more points in the recipe make them again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from sordino.config import chain, records
from sordino.config.chain import ModelRef
from sordino.config.run_layout import AUDIT, POINT, SWEEP_FILE, RunLayout, split_file
from sordino.config.schema import Recipe, SensitivitySection
from sordino.data.clip import Clip
from sordino.errors import FamilyError, RecipeError, SordinoError
from sordino.formats.registry import MIXED
from sordino.measure import size
from sordino.measure.show import spent
from sordino.metrics import groups
from sordino.models.generation import Hypothesis
from sordino.pipeline import artifact, evaluation, exporting, reported_stages, results, translating, workers
from sordino.pipeline.device import device_of
from sordino.pipeline.mixed_precision import MixedPrecision, limit_of
from sordino.pipeline.parents import model_hash
from sordino.pipeline.stage import Job
from sordino.pipeline.sweep_points import PRUNED, SweepPoint
from sordino.pruning import removal
from sordino.pruning.ranking import Ranking
from sordino.report.frontier import frontier, knee
from sordino.report.model import Report, System
from sordino.runtime import files
from sordino.runtime.progress import note

METRIC = "chrf"
MADE = "made.json"  # written last in the directory of a point's model


class Sweep:
    """The points of one job. uses: the recipe's settings that a point's results depend on."""

    def __init__(self, job: Job, clips: Sequence[Clip], uses: Sequence[str]) -> None:
        self.job, self.clips, self.uses = job, clips, uses
        self.ranking = Ranking.read(job.layout.ranking) if job.recipe.rank else None
        self.mixers: dict[str, MixedPrecision] = {}  # by the model they start from: its parts are measured once

    def make(self, point: SweepPoint) -> None:
        """Make and score a point, unless it is scored already.

        Raises FamilyError, RecipeError where its model cannot be made.
        """
        kept = self.cached(point)
        if not (kept / POINT).is_file():
            self.write_model(point)
            task = self.task(point)
            timed = translating.translate_timed(task.recipe, task.section, task.model, task.clips, task.label)
            self.score(point, kept, *timed)
        shutil.copytree(kept, self.job.out / point.key, dirs_exist_ok=True)

    def expected(self, point: SweepPoint) -> str:
        """What a point will take, in words: to be translated with, as long as the model that it is made of."""
        if (self.cached(point) / POINT).is_file():
            return "scored already"
        speed = self.job.layout.speed(point.of)
        return f"~{spent(files.read_json(speed)['seconds'])} to translate with" if speed.is_file() else "to be made"

    def model_directory(self, point: SweepPoint) -> Path:
        """Where a point's model lies until it is scored."""
        return self.job.state / point.key

    def write_model(self, point: SweepPoint) -> None:
        """Make a point's model, unless a killed sweep has made it."""
        job, directory = self.job, self.model_directory(point)
        if (directory / MADE).is_file():
            return
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        if point.form == MIXED:
            if point.of not in self.mixers:
                self.mixers[point.of] = MixedPrecision(job, point.of, sensitivity_of(job.recipe))
            exporting.write_mixed(self.mixers[point.of], limit_of(job.recipe, None, point.amount), directory)
        elif point.form == PRUNED:
            assert self.ranking
            source, removed = job.model(point.of), self.ranking.removal_order(int(point.amount))
            removal.write_without(source.path, source.revision, removed, directory)
            job.describe(directory)
        else:
            exporting.write(job, point.of, point.form, directory)
        files.write_json(directory / MADE, dataclasses.asdict(point))

    def cached(self, point: SweepPoint) -> Path:
        """Where a point's results are kept: named by everything that they depend on."""
        recipe = self.job.recipe
        data = records.read_stage(self.job.layout.data)
        assert data
        depends: dict[str, Any] = {
            "model": model_hash(recipe, point.of),
            "clips": data["hash"],
            "form": [point.form, point.amount],
            "settings": {name: repr(getattr(recipe, name)) for name in self.uses if name != "export"},
            "device": str(device_of(recipe.device)),
            "sordino": artifact.versions().get("sordino"),
        }
        if point.form == MIXED:
            depends["sensitivity"] = dataclasses.asdict(sensitivity_of(recipe))
        if self.ranking:
            depends["order"] = [str(layer) for layer in self.ranking.order]
        name = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]
        return self.job.layout.cache / "sweep" / f"{point.key}-{name}"

    def make_on_cluster(self, points: Sequence[SweepPoint]) -> dict[SweepPoint, SordinoError]:
        """Make and score the points that are not scored already, translating with several at once; which cannot be.

        This process makes the models, one more than there are workers at the most.
        """
        lacking = [point for point in points if not (self.cached(point) / POINT).is_file()]
        refused: dict[SweepPoint, SordinoError] = {}
        written: list[SweepPoint] = []

        def tasks() -> Iterator[translating.TranslateTask]:
            for point in lacking:
                try:
                    self.write_model(point)
                except (FamilyError, RecipeError) as error:
                    refused[point] = error
                    continue
                written.append(point)
                yield self.task(point)

        with workers.open_workers(self.job, str) as executor:
            for place, timed in executor.run(translate_if_possible, tasks(), "point"):
                point = written[place]
                if isinstance(timed, SordinoError):
                    refused[point] = timed
                    continue
                note(f"  {point.label} has translated")
                self.score(point, self.cached(point), *timed)
        return refused

    def task(self, point: SweepPoint) -> translating.TranslateTask:
        """The test clips by a point's model."""
        recipe, model = self.job.recipe, ModelRef(point.key, str(self.model_directory(point)))
        assert recipe.translate
        return translating.TranslateTask(recipe, recipe.translate, model, tuple(self.clips), point.label)

    def score(
        self, point: SweepPoint, directory: Path, hypotheses: Sequence[Hypothesis], speed: dict[str, Any]
    ) -> None:
        """Score a point's translations, weigh its model and throw it away; point.json comes last."""
        recipe, model = self.job.recipe, self.model_directory(point)
        assert recipe.translate and recipe.evaluate
        directory.mkdir(parents=True, exist_ok=True)
        translating.write_hypotheses(directory / split_file(recipe.translate.split), hypotheses)
        by_group = groups.deal([clip.group for clip in self.clips])
        texts = [h.text for h in hypotheses]
        audit = model / AUDIT
        facts = {
            "label": point.label,
            "scores": evaluation.score_system(recipe, recipe.evaluate, self.clips, texts, by_group),
            "speed": speed,
            "size": size.measure(model).to_json(),
            "audit": files.read_json(audit) if audit.is_file() else None,
        }
        files.write_json(directory / POINT, facts)
        shutil.rmtree(model)


def translate_if_possible(device: str, task: translating.TranslateTask) -> translating.Timed | SordinoError:
    """As `translate_one`; what cannot be translated with is told, and does not end the sweep."""
    try:
        return translating.translate_one(device, task)
    except (FamilyError, RecipeError) as error:
        return error


def sensitivity_of(recipe: Recipe) -> SensitivitySection:
    """As the recipe's own export would measure."""
    return recipe.export.sensitivity if recipe.export else SensitivitySection()


def result_of(recipe: Recipe, made: Sequence[SweepPoint], directory: Path) -> dict[str, Any]:
    """For sweep.json: all points, the frontier and its knee by name. directory: with the points made."""
    systems = in_order(recipe, {point.key for point in made}, directory)
    weighed = [s for s in systems if s.size]
    places = [(s.size.weights_bytes, s.scores[METRIC].value) for s in weighed if s.size]
    best = knee(places)
    by_key = {point.key: point for point in made}
    return {
        "metric": METRIC,
        "points": [row(s, systems, by_key.get(s.name), directory) for s in systems],
        "frontier": [weighed[i].name for i in frontier(places)],
        "knee": weighed[best].name if best is not None else None,
    }


def in_order(recipe: Recipe, made: Collection[str], directory: Path) -> list[System]:
    """The systems that the chain has scored and the points made here, largest first.

    The untrained base model is left out where there is a teacher: it is as large and much worse.
    """
    layout = RunLayout(recipe.directory)
    scores, sizes, speeds = (files.read_json(file) for file in (layout.scores, layout.sizes, layout.speeds))
    rows = {
        key: (entry, sizes[key], speeds[key], chain.reference(recipe, key).path)
        for key, entry in scores["systems"].items()
    }
    if chain.TEACHER in rows:
        rows.pop(chain.BASE, None)
    teacher = scores["systems"].get(chain.TEACHER, {}).get("scores")
    for key in made:
        facts = files.read_json(directory / key / POINT)
        retention = evaluation.retention(facts["scores"]["scores"], teacher)
        rows[key] = (
            facts["scores"] | {"label": facts["label"], "retention": retention},
            facts["size"],
            facts["speed"],
            "",
        )
    # tested against the teacher are the chain's own systems alone: a mark on some of the points would mislead
    systems = [results.system(key, {**entry, "significance": {}}, *facts) for key, (entry, *facts) in rows.items()]
    return sorted(systems, key=lambda s: (-(s.size.weights_bytes if s.size else 0), s.name))


def row(system: System, systems: Sequence[System], point: SweepPoint | None, directory: Path) -> dict[str, Any]:
    """One point for sweep.json. ratio: of the teacher's bytes; settings: None for a system of the chain."""
    teacher = next((s.size for s in systems if s.name == chain.TEACHER), None)
    weight, value = system.size, system.scores[METRIC]
    entry: dict[str, Any] = {
        "system": system.name,
        "label": system.label,
        "bytes": weight.weights_bytes if weight else None,
        "ratio": weight.weights_bytes / teacher.weights_bytes if weight and teacher else None,
        METRIC: value.value,
        "interval": value.interval,
        "retention": system.retention.get(METRIC),
        "settings": list(point.settings) if point else None,
    }
    if point and point.form == MIXED:
        mixed = files.read_json(directory / point.key / POINT)["audit"][MIXED]
        entry |= {name: mixed[name] for name in ("bits", "dropped", "predicted_bytes", "predicted_cost")}
    return entry


def report_of(recipe: Recipe, directory: Path) -> Report:
    """The page of a sweep, from its finished files."""
    layout = RunLayout(recipe.directory)
    result = files.read_json(directory / SWEEP_FILE)
    made = {point["system"]: tuple(point["settings"]) for point in result["points"] if point["settings"]}
    systems = (dataclasses.replace(s, settings=made.get(s.name, ())) for s in in_order(recipe, made, directory))
    return Report(
        title=f"{recipe.name}: size against quality",
        facts=results.facts(recipe, files.read_json(layout.scores), files.read_json(layout.speeds)),
        systems=tuple(systems),
        trials=(),
        samples=(),
        notes=tuple(f"Left out: {label}: {why}" for label, why in result["left_out"].items()),
        criterion=METRIC,
        frontier=tuple(result["frontier"]),
        knee=result["knee"] or "",
        recipe=reported_stages.recipe_file(recipe),
        links=reported_stages.sweep_links(recipe),
    )
