"""sweep: smaller forms of the chain's models, each made, timed and scored like the chain's own: bytes against quality.

sweep.json says which settings make a point; its model is thrown away once it is scored.
"""

from __future__ import annotations

from sordino.config import chain
from sordino.config.run_layout import DATA, OUTPUTS, RANKING, SCORES, SWEEP, SWEEP_FILE, SWEEP_PAGE
from sordino.config.schema import Recipe, SweepSection
from sordino.errors import FamilyError, RecipeError
from sordino.pipeline.stage import Job, Stage
from sordino.pipeline.sweep_points import SweepPoint, points_of
from sordino.pipeline.workers import on_cluster
from sordino.runtime import files
from sordino.runtime.progress import note


def run(job: Job, section: SweepSection) -> None:
    from sordino.pipeline import sweeping
    from sordino.report.page import render

    recipe = job.recipe
    assert recipe.translate
    clips = job.clips(recipe.translate.split)
    sweep = sweeping.Sweep(job, clips, STAGE.uses)
    points = points_of(recipe, section, len(sweep.ranking.order) if sweep.ranking else 0)
    note(f"{len(points)} points to make, beside the chain's own systems:")
    for point in points:
        note(f"  {point.label}: {sweep.expected(point)}")
    made: list[SweepPoint] = []
    left_out: dict[str, str] = {}
    refused = sweep.make_on_cluster(points) if on_cluster(recipe) else {}
    for number, point in enumerate(points, 1):
        note(f"point {number} of {len(points)}: {point.label}")
        try:
            if point in refused:
                raise refused[point]
            sweep.make(point)
        except (FamilyError, RecipeError) as error:  # a format that cannot hold this model, or needs what is not here
            left_out[point.label] = str(error)
            note(f"  left out: {error}")
        else:
            made.append(point)
    result = sweeping.result_of(recipe, made, job.out) | {"clips": len(clips), "left_out": left_out}
    files.write_json(job.out / SWEEP_FILE, result)
    files.write_text(job.out / SWEEP_PAGE, render(sweeping.report_of(recipe, job.out)))


def parents(recipe: Recipe) -> list[str]:
    """The scored chain, the models that are made smaller, the clips, and the ranking."""
    assert recipe.sweep
    models = [point.of for point in points_of(recipe, recipe.sweep, 0)]
    ranking = [RANKING] if recipe.rank else []
    directories = map(chain.directory_of, [chain.ranked_model(recipe), *models])
    return [SCORES, OUTPUTS, DATA, *ranking, *dict.fromkeys(directories)]


STAGE = Stage(
    name="sweep",
    directory=SWEEP,
    section=lambda recipe: recipe.sweep,
    parents=parents,
    run=run,
    derived=True,
    uses=(
        *("source", "target", "prompt", "seed", "dtype", "attention", "encode_batch"),
        *("export", "translate", "evaluate"),
    ),
)
