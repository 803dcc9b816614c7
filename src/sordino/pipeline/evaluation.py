"""Scores of a system's translations: metrics with intervals, by group and cleaned, output health, tests, retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.config import chain
from sordino.config.run_layout import RunLayout
from sordino.config.schema import EvaluateSection, Recipe
from sordino.data.clip import Clip
from sordino.errors import ArtifactError
from sordino.measure import size
from sordino.metrics import clean, groups, health, paired
from sordino.metrics import registry as metrics
from sordino.metrics.base import Score
from sordino.models.registry import is_hub_id
from sordino.runtime import files
from sordino.runtime.progress import bar


def score_system(
    recipe: Recipe,
    section: EvaluateSection,
    clips: Sequence[Clip],
    texts: list[str],
    by_group: dict[str, list[int]] | str,
) -> dict[str, Any]:
    """Scores of one system's outputs, whole and by group, their faults, and the scores of the cleaned outputs.

    by_group: of metrics.groups.deal.
    """
    references, sources = [c.target_text or "" for c in clips], [c.source_text for c in clips]
    scores = score(recipe, section, texts, references, sources)
    checked = health.check(texts, references, recipe.target, [c.id for c in clips], sources)
    entry: dict[str, Any] = {"scores": {key: s.to_json() for key, s in scores.items()}, "health": checked.to_json()}
    if not isinstance(by_group, str):
        entry["groups"] = {
            key: groups.scores(metrics.get(key), s, texts, references, recipe.target, by_group)
            for key, s in scores.items()
        }
    if section.clean:
        cleaned = clean.clean(texts)
        again = score(recipe, section, cleaned.texts, references, sources)
        entry["cleaned"] = cleaned.to_json() | {"scores": {key: s.to_json() for key, s in again.items()}}
    return entry


def score(
    recipe: Recipe,
    section: EvaluateSection,
    texts: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str | None],
) -> dict[str, Score]:
    """By metric key."""
    return {
        key: metrics.get(key, recipe.device).score(
            texts, references, recipe.target, sources=sources, bootstrap=section.bootstrap, seed=recipe.seed
        )
        for key in map(metrics.canonical, section.metrics)
    }


def significance(
    recipe: Recipe, section: EvaluateSection, clips: Sequence[Clip], texts: Mapping[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """p-values of every other system against the teacher, by metric; nothing without a teacher or resamples."""
    keys = [key for key in map(metrics.canonical, section.metrics) if paired.testable(key)]
    if chain.TEACHER not in texts or len(texts) < 2 or not section.bootstrap or not section.significance or not keys:
        return {}
    references = [clip.target_text or "" for clip in clips]
    teacher = texts[chain.TEACHER]
    tests: dict[str, dict[str, Any]] = {}
    with bar("testing against the teacher", (len(texts) - 1) * len(keys)) as advance:
        for system, others in texts.items():
            if system == chain.TEACHER:
                continue
            tests[system] = {"against": chain.TEACHER}
            for key in keys:
                tested = paired.compare(key, teacher, others, references, recipe.target, section.bootstrap)
                tests[system][key] = tested.to_json()
                advance(1)
    return tests


def size_of(recipe: Recipe, key: str) -> size.Size | None:
    """What a system weighs on disk; an adapter is weighed with the base it needs. None for a model on the Hub."""
    path = chain.reference(recipe, key).path
    if is_hub_id(path):
        return None
    measured = size.measure(Path(path))
    if key != chain.ADAPTER:
        return measured
    base = size_of(recipe, chain.start_of(recipe, key))
    return size.together(base, measured) if base else None


def retention(scores: dict[str, Any], teacher: dict[str, Any] | None) -> dict[str, float]:
    """Per cent of the teacher's score, per metric; empty where there is no teacher or it scored 0."""
    if not teacher:
        return {}
    return {name: 100 * s["value"] / teacher[name]["value"] for name, s in scores.items() if teacher[name]["value"] > 0}


def hypotheses(recipe: Recipe, key: str, clips: Sequence[Clip]) -> list[str]:
    """A system's texts in the order of the clips. Raises ArtifactError where the file and the split disagree."""
    assert recipe.translate
    file = RunLayout(recipe.directory).hypotheses(key, recipe.translate.split)
    texts = {row["id"]: row["text"] for row in files.read_jsonl(file)}
    ids = [clip.id for clip in clips]
    if set(texts) != set(ids):
        raise ArtifactError(f"{file} does not hold the hypotheses of this split.", "Run translate again.")
    return [texts[i] for i in ids]
