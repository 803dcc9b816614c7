"""translate: every model of the chain translates the test split, timed from the waveform to the text.

A system that was finished before a kill is not run again.
"""

from __future__ import annotations

from typing import Any

from sordino.config import chain
from sordino.config.run_layout import DATA, OUTPUTS, SPEEDS_FILE, split_file
from sordino.config.schema import Recipe, TranslateSection
from sordino.pipeline.device import device_type
from sordino.pipeline.stage import Job, Stage
from sordino.runtime import files


def run(job: Job, section: TranslateSection) -> None:
    from sordino.pipeline import translating

    recipe = job.recipe
    clips = job.clips(section.split)
    labels = chain.labels(recipe)
    for key in chain.scored(recipe):
        directory = job.out / key
        if (directory / SPEEDS_FILE).is_file():
            continue
        directory.mkdir(exist_ok=True)
        hypotheses, speed = translating.translate_timed(recipe, section, job.model(key), clips, labels[key])
        translating.write_hypotheses(directory / split_file(section.split), hypotheses)
        files.write_json(directory / SPEEDS_FILE, speed)
        job.record["device"] = speed["device"]


def extras(recipe: Recipe) -> dict[str, Any]:
    """The kind of device: the speeds are its."""
    return {"device": device_type(recipe.device)}


STAGE = Stage(
    name="translate",
    directory=OUTPUTS,
    section=lambda recipe: recipe.translate,
    parents=lambda recipe: [*dict.fromkeys(map(chain.directory_of, chain.scored(recipe))), DATA],
    run=run,
    uses=("source", "target", "prompt", "dtype", "attention"),
    extras=extras,
)
