"""Models that are pruned in memory and written from their files: whole or not there, each with its card."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sordino.config import card
from sordino.errors import ArtifactError, FamilyError, UsageError, near_match
from sordino.formats import registry as formats
from sordino.inference.model import Model
from sordino.models import prompts, registry
from sordino.models.family import Scope
from sordino.pipeline import lineage
from sordino.pipeline.lineage import Lineage
from sordino.pruning import removal
from sordino.pruning.layer import Layer, parse_layer
from sordino.publishing import card as model_card
from sordino.publishing import facts
from sordino.runtime import files

SIXTEEN_BIT = "bf16"
UNSCORED = "it was written with the model, before anything was scored."
OF_A_RUN = (formats.MIXED, "w4a16-gptq")  # formats that are made for a run's clips


def prune(model: Model, order: Iterable[Layer | str | int]) -> Model:
    """A smaller model that shares the weights of `model`. Raises RecipeError for layers that it does not have."""
    speech = model.speech
    if speech.external_decoder:
        raise FamilyError(f"{speech.path} holds a decoder for llama.cpp.", "Prune the 16-bit model it was made from.")
    layers = [item if isinstance(item, Layer) else parse_layer(str(item)) for item in order]
    memo = {id(parameter): parameter for parameter in speech.model.parameters()}  # shared, not copied
    smaller = dataclasses.replace(speech, model=copy.deepcopy(speech.model, memo))
    names = {scope: _names(model, scope) for scope in speech.family.scopes}
    removal.remove(smaller, layers)
    gone = tuple(Layer(layer.scope, names[layer.scope][layer.index]) for layer in layers)
    return dataclasses.replace(model, speech=smaller, removed=(*model.removed, *gone))


def _names(model: Model, scope: Scope) -> list[int]:
    """Index in the files of each layer that the model still has."""
    gone = {layer.index for layer in model.removed if layer.scope == scope}
    total = model.speech.layer_count(scope) + len(gone)
    return [i for i in range(total) if i not in gone]


def write(model: Model | str, directory: Path, name: str) -> None:
    """Write a model in a format, from its files, with sordino.json and a model card.

    Raises ArtifactError where `directory` exists or weights were changed in memory, UsageError for a format that is
    not there or needs a run, FamilyError, ArtifactError as the formats do.
    """
    if name not in formats.FORMATS or name in OF_A_RUN:
        choices = [other for other in formats.FORMATS if other not in OF_A_RUN]
        near = near_match(name, choices)
        if name in OF_A_RUN:
            raise UsageError(f"format {name} is made for the clips of a run.", "Put it into a recipe's export.formats.")
        guess = f"Did you mean '{near}'? " if near else ""
        raise UsageError(f"there is no format '{name}'.", f"{guess}There are: {', '.join(choices)}.")
    removed: tuple[Layer, ...] = ()
    if isinstance(model, str):
        path, asked = model, card.read(Path(model))
    else:
        path, asked, removed = model.speech.path, model.card, model.removed
        if model.changed():
            raise ArtifactError(
                f"the weights of {path} were changed in memory, and models are written from their files.",
                "Save model.speech.model and model.speech.processor with their save_pretrained, and load that.",
            )
    with _new(directory) as out:
        if removed and name != SIXTEEN_BIT:
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{directory.name}.") as place:
                removal.write_without(path, None, removed, Path(place))
                formats.get(name).write(place, out)
        elif removed:
            removal.write_without(path, None, removed, out)
        else:
            formats.get(name).write(path, out)
        if asked.target is not None:
            prompts.describe(out, registry.family_of(str(out)), asked)
        history = None if removed else _history(path)
        known = facts.read(out, f"A model in {name}", facts.HERE, history, UNSCORED, form=name)
        files.write_text(out / model_card.README, model_card.render(known))


def _history(path: str) -> Lineage | None:
    """How a model of a run was made; None for any other."""
    try:
        return lineage.read(Path(path).resolve())
    except ArtifactError:
        return None


@contextmanager
def _new(directory: Path) -> Iterator[Path]:
    """A directory beside it, which gets the name when the block has come to its end, and is removed where it fails."""
    if directory.exists():
        raise ArtifactError(f"{directory} exists.", "Give another directory, or remove it.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process of this number that was killed
    partial.mkdir()
    try:
        yield partial
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def stored_at(model: Model, directory: Path) -> Model:
    """The model, whose files are now those in `directory`."""
    speech = dataclasses.replace(model.speech, path=str(directory))
    return dataclasses.replace(model, speech=speech, removed=())
