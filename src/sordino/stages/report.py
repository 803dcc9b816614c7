"""report: one offline HTML page of what the run found, beside its JSON files and the recipe as it ran."""

from __future__ import annotations

import shutil

from sordino.config.run_layout import DATA, OUTPUTS, PAGE, RANKING, REPORT, SCORES
from sordino.config.schema import ReportSection
from sordino.pipeline.stage import Job, Stage
from sordino.runtime import files


def run(job: Job, section: ReportSection) -> None:
    from sordino.config.dump import to_yaml
    from sordino.pipeline.reported_stages import RECIPE_FILE
    from sordino.pipeline.results import report_of
    from sordino.report.page import render

    for file in (job.layout.scores, job.layout.sizes, job.layout.speeds):
        shutil.copyfile(file, job.out / file.name)
    files.write_text(job.out / RECIPE_FILE, to_yaml(job.recipe))
    files.write_text(job.out / PAGE, render(report_of(job.recipe, section.audio)))


STAGE = Stage(
    name="report",
    directory=REPORT,
    section=lambda recipe: recipe.report if recipe.translate and recipe.evaluate else None,
    parents=lambda recipe: [SCORES, OUTPUTS, DATA, *([RANKING] if recipe.rank else [])],
    run=run,
    derived=True,
    uses=("name", "source", "target", "model", "seed"),
)
