"""evaluate: scores with signatures and intervals, output health, sizes in bytes and parameters, speed; as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sordino import artifact
from sordino.data import manifest
from sordino.errors import ArtifactError
from sordino.families import registry as families
from sordino.measure import size
from sordino.metrics import health
from sordino.metrics import registry as metrics
from sordino.recipe import Recipe
from sordino.stages.job import DATA, OUTPUTS, SCORES, Job, Stage, chosen, directory_of, model_path, qlora_start, systems


def run(job: Job) -> None:
    recipe = job.recipe
    section = recipe.evaluate
    assert section and recipe.translate
    split = recipe.translate.split
    clips = manifest.read(job.run_dir / DATA / f"{split}.jsonl")
    references, ids = [c.target_text or "" for c in clips], [c.id for c in clips]
    scores: dict[str, Any] = {"split": split, "clips": len(clips), "target": recipe.target, "systems": {}}
    sizes: dict[str, Any] = {}
    speeds: dict[str, Any] = {}
    for key in chosen(recipe):
        texts = read_hypotheses(job.run_dir / OUTPUTS / key / f"{split}.jsonl", ids)
        found = {
            name: metrics.get(name)
            .score(texts, references, recipe.target, bootstrap=section.bootstrap, seed=recipe.seed)
            .to_json()
            for name in map(metrics.canonical, section.metrics)
        }
        scores["systems"][key] = {
            "label": systems(recipe)[key],
            "scores": found,
            "health": health.check(texts, references, recipe.target, ids).to_json(),
        }
        speeds[key] = artifact.read_json(job.run_dir / OUTPUTS / key / "speed.json")
        found_size = weight_of(recipe, key)
        sizes[key] = found_size.to_json() if found_size else None
    for entry in scores["systems"].values():
        entry["retention"] = retention(entry["scores"], scores["systems"].get("teacher", {}).get("scores"))
    for name, value in (("scores", scores), ("size", sizes), ("speed", speeds)):
        artifact.write_json(job.out / f"{name}.json", value)


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


def read_hypotheses(file: Path, ids: list[str]) -> list[str]:
    """Texts in the order of `ids`. Raises ArtifactError where the file and the split disagree."""
    rows = {row["id"]: row["text"] for row in artifact.read_jsonl(file)}
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
