"""export: the deployable forms of the last model of the chain, each in its directory with a byte audit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from sordino.config.schema import ExportSection, Recipe
from sordino.data import manifest
from sordino.errors import ArtifactError, DataError
from sordino.formats import registry as formats
from sordino.measure import size
from sordino.models.features import Features
from sordino.pipeline.job import DATA, EXPORT, PSEUDO, RANKING, Job, Stage, directory_of, export_source
from sordino.pipeline.mixed_precision import MIXED, MixedPrecision, limit_of
from sordino.pruning.speculative import default_memory
from sordino.quantization.gptq import Calibration
from sordino.runtime import files
from sordino.runtime.progress import note


def run(job: Job) -> None:
    section = job.recipe.export
    assert section
    key = export_source(job.recipe)
    for name in section.formats:
        directory = job.out / name
        if (directory / "audit.json").is_file():  # finished before a kill: the audit is written last
            continue
        if name == MIXED:
            mixer = MixedPrecision(job, key, section.sensitivity)
            write_mixed(mixer, limit_of(job.recipe, section.budget_gb, section.budget_ratio), directory)
        else:
            write(job, key, name, directory)


def write(job: Job, key: str, name: str, directory: Path) -> None:
    """Write a model of the chain in a format, with its audit."""
    directory.mkdir(exist_ok=True)
    revision = job.recipe.revision if key == "base" else None
    module = formats.get(name)
    options = {}
    if getattr(module, "CALIBRATED", False):
        options = {"calibration": calibration(job, key), "state": job.state / f"{name}-of-{key}"}
    notes = module.write(job.path(key), directory, revision, **options)
    audit(job, name, directory, notes or {})


def write_mixed(mixer: MixedPrecision, limit: int, directory: Path) -> None:
    """Write a model of the chain in so many bytes, with its audit. Raises RecipeError where they are too few."""
    mixer.measure()
    choice = mixer.choose(limit)
    directory.mkdir(exist_ok=True)
    found = audit(mixer.job, MIXED, directory, {MIXED: mixer.write(choice, directory, limit)})
    if found.weights_bytes > limit:
        raise ArtifactError(f"{directory} holds {found.weights_bytes:,} bytes of weights, above {limit:,}.", "A bug.")


def audit(job: Job, name: str, directory: Path, facts: dict[str, Any]) -> size.Size:
    """Leave beside an export how it is asked, what it weighs and what it loads with."""
    job.describe(directory)
    found = size.measure(directory)
    loads_with = formats.get(name).LOADS_WITH
    record = {"format": name, "loads_with": loads_with, "size": found.to_json(), **facts}
    files.write_json(directory / "audit.json", record)
    note(f"  {name}: {found.weights_bytes / 1e6:.2f} MB of weights")
    return found


def calibration(job: Job, key: str) -> Calibration:
    """The model that is exported and training clips with their answers: the teacher's translations where there are any.

    Raises DataError for a run without training clips.
    """
    recipe = job.recipe
    wanted = (recipe.export or ExportSection()).calibration
    clips = manifest.read(job.run_dir / answers_in(recipe) / "train.jsonl")
    if not clips:
        raise DataError("export: this run has no training clips, which w4a16-gptq is rounded for.", "Export w4a16.")
    clips = random.Random(recipe.seed).sample(clips, min(wanted, len(clips)))
    speech = job.load(key)
    if recipe.attention == "flash_attention_2":  # layers are run with masks of their own
        speech.model.set_attn_implementation("sdpa")
    encoded = Features(speech, job.cache).encode_all(clips, job.prompt(speech), "encoding the calibration clips")
    answers = [speech.answer_ids(clip.target_text or "", recipe.prompt.style) for clip in clips]
    return Calibration(speech, encoded, answers, default_memory(speech))


def answers_in(recipe: Recipe) -> str:
    """Where GPTQ's training clips and their answers lie."""
    return PSEUDO if recipe.pseudolabel else DATA


def parents(recipe: Recipe) -> list[str]:
    """The model; for a budget, the clips that say what matters and the layers that may go too."""
    assert recipe.export
    found = [directory_of(export_source(recipe))]
    if MIXED in recipe.export.formats:
        found += [DATA, *([RANKING] if recipe.rank and recipe.export.sensitivity.drop else [])]
    if "w4a16-gptq" in recipe.export.formats:
        found.append(answers_in(recipe))
    return list(dict.fromkeys(found))


STAGE = Stage(
    name="export",
    directory=EXPORT,
    section=lambda recipe: recipe.export,
    parents=parents,
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention"),
)
