"""evaluate: scores with signatures and intervals, output health, sizes in bytes and parameters, speed; as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.config.schema import Recipe
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.errors import ArtifactError
from sordino.measure import size
from sordino.metrics import clean, groups, health, paired
from sordino.metrics import registry as metrics
from sordino.metrics.base import Score
from sordino.models import registry as families
from sordino.pipeline.job import (
    DATA,
    OUTPUTS,
    SCORES,
    Job,
    Stage,
    chosen,
    directory_of,
    model_path,
    qlora_start,
    systems,
)
from sordino.runtime import files
from sordino.runtime.progress import bar

TEACHER = "teacher"  # what the other systems are compared with


def run(job: Job) -> None:
    recipe = job.recipe
    assert recipe.evaluate and recipe.translate
    split = recipe.translate.split
    clips = manifest.read(job.run_dir / DATA / f"{split}.jsonl")
    scores: dict[str, Any] = {"split": split, "clips": len(clips), "target": recipe.target, "systems": {}}
    sizes: dict[str, Any] = {}
    speeds: dict[str, Any] = {}
    by_group = groups.deal([clip.group for clip in clips])
    skipped = by_group if isinstance(by_group, str) else None
    counts = {} if isinstance(by_group, str) else {group: len(found) for group, found in by_group.items()}
    scores["groups"] = {"clips": counts, "skipped": skipped}
    texts = {key: hypotheses(recipe, key, clips) for key in chosen(recipe)}
    for key, said in texts.items():
        scores["systems"][key] = system(recipe, clips, said, by_group) | {"label": systems(recipe)[key]}
        speeds[key] = files.read_json(job.run_dir / OUTPUTS / key / "speed.json")
        found_size = weight_of(recipe, key)
        sizes[key] = found_size.to_json() if found_size else None
    for entry in scores["systems"].values():
        entry["retention"] = retention(entry["scores"], scores["systems"].get(TEACHER, {}).get("scores"))
    for key, found in significance(recipe, clips, texts).items():
        scores["systems"][key]["significance"] = found
    for name, value in (("scores", scores), ("size", sizes), ("speed", speeds)):
        files.write_json(job.out / f"{name}.json", value)


def system(
    recipe: Recipe, clips: Sequence[Clip], texts: list[str], by_group: dict[str, list[int]] | str
) -> dict[str, Any]:
    """Scores of one system's outputs, whole and by group, their faults, and the scores of the cleaned outputs."""
    assert recipe.evaluate
    references, sources = [c.target_text or "" for c in clips], [c.source_text for c in clips]
    found = score(recipe, texts, references, sources)
    checked = health.check(texts, references, recipe.target, [c.id for c in clips], sources)
    entry: dict[str, Any] = {"scores": {k: s.to_json() for k, s in found.items()}, "health": checked.to_json()}
    if not isinstance(by_group, str):
        entry["groups"] = {
            key: groups.scores(metrics.get(key), s, texts, references, recipe.target, by_group)
            for key, s in found.items()
        }
    if recipe.evaluate.clean:
        cleaned = clean.clean(texts)
        again = score(recipe, cleaned.texts, references, sources)
        entry["cleaned"] = cleaned.to_json() | {"scores": {key: s.to_json() for key, s in again.items()}}
    return entry


def score(
    recipe: Recipe, texts: Sequence[str], references: Sequence[str], sources: Sequence[str | None]
) -> dict[str, Score]:
    """By metric key."""
    assert recipe.evaluate
    return {
        key: metrics.get(key, recipe.device).score(
            texts, references, recipe.target, sources=sources, bootstrap=recipe.evaluate.bootstrap, seed=recipe.seed
        )
        for key in map(metrics.canonical, recipe.evaluate.metrics)
    }


def significance(recipe: Recipe, clips: Sequence[Clip], texts: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    """p-values of every other system against the teacher, by metric; nothing without a teacher or resamples."""
    section = recipe.evaluate
    assert section
    keys = [key for key in map(metrics.canonical, section.metrics) if paired.testable(key)]
    if TEACHER not in texts or len(texts) < 2 or not section.bootstrap or not section.significance or not keys:
        return {}
    references = [clip.target_text or "" for clip in clips]
    found: dict[str, dict[str, Any]] = {}
    with bar("testing against the teacher", (len(texts) - 1) * len(keys)) as advance:
        for key, said in texts.items():
            if key == TEACHER:
                continue
            found[key] = {"against": TEACHER}
            for name in keys:
                tested = paired.compare(name, texts[TEACHER], said, references, recipe.target, section.bootstrap)
                found[key][name] = tested.to_json()
                advance(1)
    return found


def weight_of(recipe: Recipe, key: str) -> size.Size | None:
    """What a system weighs on disk; an adapter is weighed with the base it needs. None for a model on the Hub."""
    path = model_path(recipe, key)
    if families.is_hub_id(path):
        return None
    found = size.measure(Path(path))
    if key != "adapter":
        return found
    base = weight_of(recipe, qlora_start(recipe))
    return size.together(base, found) if base else None


def retention(scores: dict[str, Any], teacher: dict[str, Any] | None) -> dict[str, float]:
    """Per cent of the teacher's score, per metric; empty where there is no teacher or it scored 0."""
    if not teacher:
        return {}
    return {name: 100 * s["value"] / teacher[name]["value"] for name, s in scores.items() if teacher[name]["value"] > 0}


def hypotheses(recipe: Recipe, key: str, clips: Sequence[Clip]) -> list[str]:
    """A system's texts in the order of the clips."""
    assert recipe.translate
    file = recipe.directory / OUTPUTS / key / f"{recipe.translate.split}.jsonl"
    return read_hypotheses(file, [clip.id for clip in clips])


def read_hypotheses(file: Path, ids: list[str]) -> list[str]:
    """Texts in the order of `ids`. Raises ArtifactError where the file and the split disagree."""
    rows = {row["id"]: row["text"] for row in files.read_jsonl(file)}
    if set(rows) != set(ids):
        raise ArtifactError(f"{file} does not hold the hypotheses of this split.", "Run translate again.")
    return [rows[i] for i in ids]


def parents(recipe: Recipe) -> list[str]:
    return [OUTPUTS, DATA, *dict.fromkeys(directory_of(key) for key in chosen(recipe))]


STAGE = Stage(
    name="evaluate",
    directory=SCORES,
    section=lambda recipe: recipe.evaluate if recipe.translate else None,
    parents=parents,
    run=run,
    uses=("target", "seed"),
)
