"""What a stage was made from, with the hashes that say whether it is still the same: stages, base model, corpora."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sordino.config import chain, records, run_layout
from sordino.config.run_layout import RunLayout
from sordino.config.schema import Recipe
from sordino.errors import ArtifactError
from sordino.models import registry
from sordino.pipeline import artifact
from sordino.pipeline.artifact import Parent
from sordino.pipeline.stage import BASE_MODEL, CORPUS, Stage
from sordino.runtime import files
from sordino.runtime.prints import SampledPrints

# told apart by their ends: hashing 100,000 clips at every look would take minutes
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".parquet"}
AUDIO_PRINTS = "audio-prints.json"  # in the cache


def parents_of(stage: Stage[Any], recipe: Recipe) -> list[Parent]:
    """The stage's parents with their hashes. Raises ArtifactError for one that is not finished."""
    parents = []
    for directory in stage.parents(recipe):
        if directory == BASE_MODEL:
            parents.append(base_parent(recipe))
        elif directory == CORPUS:
            parents += corpus_parents(recipe)
        else:
            done = records.read_stage(recipe.directory / directory)
            if done is None:
                raise ArtifactError(
                    f"{recipe.directory / directory} is not finished, and {stage.name} needs it.",
                    "`sordino run RECIPE` runs what is missing.",
                )
            parents.append(Parent(directory, _hash(done, directory, recipe)))
    return parents


def _hash(done: dict[str, Any], directory: str, recipe: Recipe) -> str:
    """A finished stage's hash; of exports, that of the formats which the recipe asks for: others may lie beside."""
    if directory != run_layout.EXPORT or recipe.export is None:
        return str(done["hash"])
    return hash_of_formats(done, recipe.export.formats)


def hash_of_formats(done: Mapping[str, Any], formats: Collection[str]) -> str:
    """The hash that an export of these formats alone would have. done: stage.json of one that has them."""
    return files.combined({name: value for name, value in done["outputs"].items() if name.split("/")[0] in formats})


def base_parent(recipe: Recipe) -> Parent:
    """The base model and the hash of its files; of a Hub model, its name and revision.

    Raises FamilyError for a local directory that holds no model of a supported family.
    """
    if registry.is_hub_id(recipe.model):
        return Parent(recipe.model, f"hub:{recipe.revision or 'main'}")
    registry.family_of(recipe.model)
    return Parent(recipe.model, artifact.fingerprint(Path(recipe.model)))


def model_hash(recipe: Recipe, key: str) -> str:
    """Hash of a model of the chain, which must be finished."""
    done = records.read_stage(recipe.directory / chain.directory_of(key)) if key != chain.BASE else None
    return str(done["hash"]) if done else base_parent(recipe).hash


def labels_directory(recipe: Recipe) -> str:
    """Of the training clips: with the teacher's translations where the recipe has them, else with their own."""
    return run_layout.PSEUDO if recipe.pseudolabel else run_layout.DATA


def corpus_parents(recipe: Recipe, remember: bool = False) -> list[Parent]:
    """The corpora: their tables by content, their audio by its ends. A plan may be made before they are there.

    remember: keep what was read, so that the next look reads only what has changed since.
    """
    assert recipe.data
    sections = [recipe.data] + ([recipe.data.extra] if recipe.data.extra else [])
    ends = SampledPrints(RunLayout(recipe.directory).cache / AUDIO_PRINTS)
    parents = []
    for section in sections:
        root = Path(section.path)
        runs = Path(recipe.out).resolve()  # a corpus directory may hold the runs: they are no part of it
        paths = sorted(p for p in root.rglob("*") if p.is_file() and runs not in p.resolve().parents)
        sounds = {p.relative_to(root).as_posix(): p for p in paths if p.suffix.lower() in AUDIO_SUFFIXES}
        texts = [p for p in paths if p.suffix.lower() not in AUDIO_SUFFIXES]
        prints = {p.relative_to(root).as_posix(): files.fingerprint_file(p) for p in texts}
        by_size = files.combined(prints | {name: str(p.stat().st_size) for name, p in sounds.items()})
        by_ends = files.combined(prints | {name: ends.of(p, f"{section.path}/{name}") for name, p in sounds.items()})
        parents.append(Parent(section.path, by_ends, former=(by_size,)))
    if remember:
        ends.save()
    return parents
