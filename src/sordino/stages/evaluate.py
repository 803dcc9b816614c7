"""evaluate: scores with signatures and intervals, output health, sizes in bytes and parameters, speed; as JSON."""

from __future__ import annotations

from typing import Any

from sordino.config import chain
from sordino.config.run_layout import DATA, OUTPUTS, SCORES, SCORES_FILE, SIZES_FILE, SPEEDS_FILE
from sordino.config.schema import EvaluateSection, Recipe
from sordino.pipeline.stage import Job, Stage
from sordino.runtime import files


def run(job: Job, section: EvaluateSection) -> None:
    from sordino.metrics import groups
    from sordino.pipeline import evaluation

    recipe = job.recipe
    assert recipe.translate
    split, labels = recipe.translate.split, chain.labels(recipe)
    clips = job.clips(split)
    systems: dict[str, Any] = {}
    sizes: dict[str, Any] = {}
    speeds: dict[str, Any] = {}
    by_group = groups.deal([clip.group for clip in clips])
    skipped = by_group if isinstance(by_group, str) else None
    counts = {} if isinstance(by_group, str) else {group: len(members) for group, members in by_group.items()}
    texts = {key: evaluation.hypotheses(recipe, key, clips) for key in chain.scored(recipe)}
    for key, translations in texts.items():
        entry = evaluation.score_system(recipe, section, clips, translations, by_group)
        systems[key] = entry | {"label": labels[key]}
        speeds[key] = files.read_json(job.layout.speed(key))
        size = evaluation.size_of(recipe, key)
        sizes[key] = size.to_json() if size else None
    teacher = systems.get(chain.TEACHER, {}).get("scores")
    for entry in systems.values():
        entry["retention"] = evaluation.retention(entry["scores"], teacher)
    for key, tests in evaluation.significance(recipe, section, clips, texts).items():
        systems[key]["significance"] = tests
    scores = {
        "split": split,
        "clips": len(clips),
        "target": recipe.target,
        "systems": systems,
        "groups": {"clips": counts, "skipped": skipped},
    }
    for name, value in ((SCORES_FILE, scores), (SIZES_FILE, sizes), (SPEEDS_FILE, speeds)):
        files.write_json(job.out / name, value)


def parents(recipe: Recipe) -> list[str]:
    return [OUTPUTS, DATA, *dict.fromkeys(map(chain.directory_of, chain.scored(recipe)))]


STAGE = Stage(
    name="evaluate",
    directory=SCORES,
    section=lambda recipe: recipe.evaluate if recipe.translate else None,
    parents=parents,
    run=run,
    derived=True,
    uses=("target", "seed"),
)
