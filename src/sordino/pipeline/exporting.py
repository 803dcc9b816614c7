"""Write a model of the chain in an export format, with its byte audit beside it."""

from __future__ import annotations

import random
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sordino.config.records import STAGE_FILE
from sordino.config.run_layout import AUDIT, LOGS, split_file
from sordino.config.schema import ExportSection
from sordino.data import manifest
from sordino.errors import ArtifactError, DataError
from sordino.formats import registry as formats
from sordino.formats.registry import MIXED
from sordino.measure import size
from sordino.models.answers import answers_of
from sordino.models.features import Features
from sordino.pipeline.mixed_precision import MixedPrecision
from sordino.pipeline.parents import labels_directory
from sordino.pipeline.stage import Job
from sordino.pruning.speculative import default_memory
from sordino.quantization.gptq import Calibration
from sordino.runtime import files
from sordino.runtime.progress import note


def write(job: Job, key: str, form: str, directory: Path) -> None:
    """Write a model of the chain in a format, with its audit."""
    directory.mkdir(exist_ok=True)
    source = job.model(key)
    module = formats.get(form)
    options = {}
    if form in formats.CALIBRATED:
        options = {"calibration": calibration(job, key), "state": job.state / f"{form}-of-{key}"}
    facts = module.write(source.path, directory, source.revision, **options)
    audit(job, form, directory, facts or {})


def copy(source: Path, directory: Path) -> None:
    """The model that a stage has written in the format that it was trained for; its audit last, as of every export."""
    directory.mkdir()
    names = sorted(file.name for file in source.iterdir() if file.is_file())
    for name in sorted(names, key=lambda name: name == AUDIT):
        if name != STAGE_FILE and not fnmatch(name, LOGS):
            shutil.copyfile(source / name, directory / name)


def write_mixed(mixer: MixedPrecision, limit: int, directory: Path) -> None:
    """Write a model of the chain in so many bytes, with its audit. Raises RecipeError where they are too few."""
    if not mixer.holds_all(limit):
        mixer.measure()
    choice = mixer.choose(limit)
    directory.mkdir(exist_ok=True)
    measured = audit(mixer.job, MIXED, directory, {MIXED: mixer.write(choice, directory, limit)})
    if measured.weights_bytes > limit:
        raise ArtifactError(
            f"{directory} holds {measured.weights_bytes:,} bytes of weights, above {limit:,}.", "A bug."
        )


def audit(job: Job, form: str, directory: Path, facts: dict[str, Any]) -> size.Size:
    """Leave beside an export how it is asked, what it weighs and what it loads with."""
    job.describe(directory)
    measured = size.measure(directory)
    loads_with = formats.get(form).LOADS_WITH
    record = {"format": form, "loads_with": loads_with, "size": measured.to_json(), **facts}
    files.write_json(directory / AUDIT, record)
    note(f"  {form}: {measured.weights_bytes / 1e6:.2f} MB of weights")
    return measured


def calibration(job: Job, key: str) -> Calibration:
    """The model that is exported and training clips with their answers: the teacher's translations where there are any.

    Raises DataError for a run without training clips.
    """
    recipe = job.recipe
    clips = manifest.read(job.layout.root / labels_directory(recipe) / split_file("train"))
    if not clips:
        raise DataError("export: this run has no training clips, which w4a16-gptq is rounded for.", "Export w4a16.")
    count = (recipe.export or ExportSection()).calibration
    clips = random.Random(recipe.seed).sample(clips, min(count, len(clips)))
    speech = job.load(key, own_masks=True)
    encoded = Features(speech, job.layout.cache).encode_all(clips, job.prompt(speech), "encoding the calibration clips")
    answers = answers_of(speech, clips, recipe.prompt.style)
    return Calibration(speech, encoded, answers, default_memory(speech))
