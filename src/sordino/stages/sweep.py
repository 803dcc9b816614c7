"""sweep: smaller forms of the chain's models, each made, timed and scored like the chain's own: bytes against quality.

A point's model is thrown away once it is scored; sweep.json says which settings make it. Finished points are kept in
the run's cache under all that they depend on, so that neither a kill nor more points in the recipe make them again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config import records
from sordino.config.schema import Recipe, SensitivitySection, SweepSection
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.errors import FamilyError, RecipeError
from sordino.formats import registry as formats
from sordino.measure import size
from sordino.metrics import groups
from sordino.models import stored
from sordino.pipeline import artifact
from sordino.pipeline.job import (
    DATA,
    OUTPUTS,
    RANKING,
    SCORES,
    SWEEP,
    Job,
    Stage,
    base_parent,
    chosen,
    device_of,
    directory_of,
    export_source,
    latest,
    systems,
    teacher_key,
)
from sordino.pipeline.mixed_precision import MIXED, MixedPrecision, limit_of
from sordino.pruning.search import parse_layer
from sordino.report.frontier import frontier, knee
from sordino.report.model import Report, System
from sordino.report.page import render
from sordino.runtime import files
from sordino.runtime.progress import note
from sordino.stages import evaluate, export, prune, report, translate

METRIC = "chrf"
MADE, POINT = "made.json", "point.json"  # of a point: written last in its model's directory, and in its own


@dataclass(frozen=True)
class Planned:
    """A point to be made. of: the model it starts from; form: an export format, or 'pruned'; amount: the ratio of
    format mixed, or so many layers removed; settings: recipe overrides with which `export` or `prune` make it."""

    key: str
    label: str
    of: str
    form: str
    amount: float
    settings: tuple[str, ...]


def run(job: Job) -> None:
    recipe = job.recipe
    section = recipe.sweep
    assert section and recipe.translate and recipe.evaluate
    clips = manifest.read(job.run_dir / DATA / f"{recipe.translate.split}.jsonl")
    mixers: dict[str, MixedPrecision] = {}
    left_out: dict[str, str] = {}
    made = []
    wanted = planned(recipe, section, ranked(job))
    for number, point in enumerate(wanted, 1):
        note(f"point {number} of {len(wanted)}: {point.label}")
        try:
            write(job, point, mixers)
            score(job, point, clips)
        except (FamilyError, RecipeError) as error:  # a format that cannot hold this model, or needs what is not here
            left_out[point.label] = str(error)
            note(f"  left out: {error}")
        else:
            made.append(point)
    result = results(job, made) | {"clips": len(clips), "left_out": left_out}
    files.write_json(job.out / "sweep.json", result)
    files.write_text(job.out / "sweep.html", render(build(recipe, job.out)))


def results(job: Job, made: list[Planned]) -> dict[str, Any]:
    """All points, the frontier and its knee by name."""
    found = in_order(job.recipe, {point.key for point in made}, job.out)
    weighed = [s for s in found if s.size]
    marks = [(s.size.weights_bytes, s.scores[METRIC].value) for s in weighed if s.size]
    best = knee(marks)
    rows = [row(s, found) for s in found]
    for entry in rows:
        point = next((p for p in made if p.key == entry["system"]), None)
        entry["settings"] = list(point.settings) if point else None
        if point and point.form == MIXED:
            mixed = files.read_json(job.out / point.key / POINT)["audit"][MIXED]
            entry |= {name: mixed[name] for name in ("bits", "dropped", "predicted_bytes", "predicted_cost")}
    return {
        "metric": METRIC,
        "points": rows,
        "frontier": [weighed[i].name for i in frontier(marks)],
        "knee": weighed[best].name if best is not None else None,
    }


def ranked(job: Job) -> int:
    """How many layers are ranked."""
    if not job.recipe.rank:
        return 0
    return len(files.read_json(job.run_dir / RANKING / "ranking.json")["order"])


def planned(recipe: Recipe, section: SweepSection, layers: int) -> list[Planned]:
    """The points to make; what the chain makes anyway is not among them. layers: that are ranked."""
    names, teacher = systems(recipe), teacher_key(recipe)
    last = (
        export_source(recipe)
        if recipe.export
        else latest(recipe, ("trimmed", "merged", "student", "pruned", "teacher", "base"))
    )
    scored = chosen(recipe)
    found = []
    for of in section.of or dict.fromkeys((teacher, last)):
        for form in section.formats or formats.FORMATS:
            if form == "bf16" or (of == last and form in scored and form != MIXED):
                continue  # the model itself, or an export that is scored already
            for ratio in section.budget_ratios if form == MIXED else (0.0,):
                settings = [f"export.of={of}", f"export.formats=[{form}]"]
                name, label = f"{of}-{form}", f"{names[of]}, {form}"
                if form == MIXED:
                    settings.append(f"export.budget_ratio={ratio:g}")
                    name, label = f"{name}-{ratio:g}", f"{label} {100 * ratio:g} %"
                found.append(Planned(name, label, of, form, ratio, tuple(settings)))
    already = (recipe.prune.remove or layers) if recipe.prune else 0
    for count in section.remove or ((layers // 2,) if layers > 1 else ()):
        if count != already:
            label = f"{names[teacher]} without {count} layers"
            found.append(Planned(f"pruned-{count}", label, teacher, "pruned", count, (f"prune.remove={count}",)))
    return found


def write(job: Job, point: Planned, mixers: dict[str, MixedPrecision]) -> None:
    """Make a point's model, unless it is made or scored already. Raises FamilyError, RecipeError where it cannot be."""
    directory = model_of(job, point)
    if (place_of(job, point) / POINT).is_file() or (directory / MADE).is_file():
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if point.form == MIXED:
        if point.of not in mixers:
            mixers[point.of] = MixedPrecision(job, point.of, sensitivity_of(job.recipe))
        export.write_mixed(mixers[point.of], limit_of(job.recipe, None, point.amount), directory)
    elif point.form == "pruned":
        model = stored.open_model(job.path(point.of), job.recipe.revision if point.of == "base" else None)
        order = files.read_json(job.run_dir / RANKING / "ranking.json")["order"]
        prune.prune(model.speech, [parse_layer(text) for text in order[: int(point.amount)]])
        model.write_16bit(directory, "copying what is left")
        job.describe(directory)
    else:
        export.write(job, point.of, point.form, directory)
    files.write_json(directory / MADE, dataclasses.asdict(point))


def sensitivity_of(recipe: Recipe) -> SensitivitySection:
    """As the recipe's own export would measure."""
    return recipe.export.sensitivity if recipe.export else SensitivitySection()


def model_of(job: Job, point: Planned) -> Path:
    """Where a point's model lies until it is scored."""
    return job.state / point.key


def place_of(job: Job, point: Planned) -> Path:
    """Where a point's results are kept: named by everything that they depend on."""
    recipe = job.recipe
    source = job.run_dir / directory_of(point.of)
    made = records.read_stage(source) if point.of != "base" else None
    data = records.read_stage(job.run_dir / DATA)
    assert data
    depends: dict[str, Any] = {
        "model": made["hash"] if made else base_parent(recipe).hash,
        "clips": data["hash"],
        "form": [point.form, point.amount],
        "settings": {name: repr(getattr(recipe, name)) for name in STAGE.uses if name != "export"},
        "device": str(device_of(recipe.device)),
        "sordino": artifact.versions().get("sordino"),
    }
    if point.form == MIXED:
        depends["sensitivity"] = dataclasses.asdict(sensitivity_of(recipe))
    if recipe.rank:
        depends["order"] = files.read_json(job.run_dir / RANKING / "ranking.json")["order"]
    name = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]
    return job.cache / "sweep" / f"{point.key}-{name}"


def score(job: Job, point: Planned, clips: list[Clip]) -> None:
    """Translate with a point's model, score and weigh it, and throw it away."""
    recipe, directory = job.recipe, place_of(job, point)
    assert recipe.translate
    if not (directory / POINT).is_file():
        translate_and_score(job, point, clips, directory)
    shutil.copytree(directory, job.out / point.key, dirs_exist_ok=True)


def translate_and_score(job: Job, point: Planned, clips: list[Clip], directory: Path) -> None:
    """Write a point's results; point.json comes last."""
    recipe, model = job.recipe, model_of(job, point)
    assert recipe.translate
    directory.mkdir(parents=True, exist_ok=True)
    hypotheses, speed = translate.one(recipe, str(model), clips, point.label)
    rows = "".join(files.json_line(h.to_json()) + "\n" for h in hypotheses)
    files.write_text(directory / f"{recipe.translate.split}.jsonl", rows)
    entry = evaluate.system(recipe, clips, [h.text for h in hypotheses], groups.deal([clip.group for clip in clips]))
    audit = model / "audit.json"
    facts = {
        "label": point.label,
        "scores": entry,
        "speed": speed,
        "size": size.measure(model).to_json(),
        "audit": files.read_json(audit) if audit.is_file() else None,
    }
    files.write_json(directory / POINT, facts)
    shutil.rmtree(model)


def in_order(recipe: Recipe, made: Collection[str], directory: Path) -> list[System]:
    """The systems that the chain has scored and the points made here, largest first.

    The untrained base model is left out where there is a teacher: it is as large and much worse.
    """
    scores, sizes, speeds = (files.read_json(recipe.directory / SCORES / name) for name in report.FILES)
    chain = {key: (entry, sizes[key], speeds[key]) for key, entry in scores["systems"].items()}
    if evaluate.TEACHER in chain:
        chain.pop("base", None)
    teacher = scores["systems"].get(evaluate.TEACHER, {}).get("scores")
    for key in made:
        facts = files.read_json(directory / key / POINT)
        entry = facts["scores"] | {
            "label": facts["label"],
            "retention": evaluate.retention(facts["scores"]["scores"], teacher),
        }
        chain[key] = entry, facts["size"], facts["speed"]
    # tested against the teacher are the chain's own systems alone: a mark on some of the points would mislead
    found = [report.system(key, {**entry, "significance": {}}, *facts) for key, (entry, *facts) in chain.items()]
    return sorted(found, key=lambda s: (-(s.size.weights_bytes if s.size else 0), s.name))


def row(system: System, found: Sequence[System]) -> dict[str, Any]:
    """One point for sweep.json. ratio: of the teacher's bytes."""
    teacher = next((s.size for s in found if s.name == evaluate.TEACHER), None)
    size, value = system.size, system.scores[METRIC]
    return {
        "system": system.name,
        "label": system.label,
        "bytes": size.weights_bytes if size else None,
        "ratio": size.weights_bytes / teacher.weights_bytes if size and teacher else None,
        METRIC: value.value,
        "interval": value.interval,
        "retention": system.retention.get(METRIC),
    }


def build(recipe: Recipe, directory: Path) -> Report:
    """The page of a sweep, from its finished files."""
    result = files.read_json(directory / "sweep.json")
    scores, speeds = (files.read_json(recipe.directory / SCORES / name) for name in ("scores.json", "speed.json"))
    made = {point["system"] for point in result["points"] if point["settings"]}
    return Report(
        title=f"{recipe.name}: size against quality",
        facts=report.facts(recipe, scores, speeds),
        systems=tuple(in_order(recipe, made, directory)),
        trials=(),
        samples=(),
        notes=tuple(f"Left out: {label}: {why}" for label, why in result["left_out"].items()),
        criterion=METRIC,
        frontier=tuple(result["frontier"]),
        knee=result["knee"] or "",
    )


def parents(recipe: Recipe) -> list[str]:
    """The scored chain, the models that are made smaller, the clips, and the ranking."""
    assert recipe.sweep
    models = [point.of for point in planned(recipe, recipe.sweep, 0)]
    ranking = [RANKING] if recipe.rank else []
    return [SCORES, OUTPUTS, DATA, *ranking, *dict.fromkeys(map(directory_of, [teacher_key(recipe), *models]))]


STAGE = Stage(
    name="sweep",
    directory=SWEEP,
    section=lambda recipe: recipe.sweep,
    parents=parents,
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention", "export", "translate", "evaluate"),
)
