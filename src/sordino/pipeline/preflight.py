"""What is refused before anything runs: mistakes that a later stage would find, perhaps after hours of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sordino.config import records
from sordino.config.schema import Recipe
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.errors import DataError, FamilyError, RecipeError
from sordino.formats import registry as formats
from sordino.metrics import comet_files
from sordino.metrics import registry as metrics
from sordino.models import registry
from sordino.pipeline.job import DATA, device_of
from sordino.pruning import search


def refuse(recipe: Recipe) -> None:
    """Raise SordinoError for a device, packages, layers, metrics and texts that are not there, and a
    tokenizer that cannot be trimmed."""
    device_of(recipe.device)
    for name in recipe.export.formats if recipe.export else ():
        formats.require(name)
    refuse_layers(recipe)
    refuse_tokenizer(recipe)
    for _, where, metric in metrics_of(recipe):
        word, _, model = metrics.canonical(metric).partition(":")
        if where != "evaluate.metrics" and word not in metrics.WITH_MODEL:
            raise RecipeError(f"{where}: '{metric}' is no COMET.", "Write comet, or comet:MODEL.")
        if model:
            comet_files.local(model)
    if records.read_stage(recipe.directory / DATA) is not None:
        refuse_sources(recipe, lambda split: manifest.read(recipe.directory / DATA / f"{split}.jsonl"))


def refuse_layers(recipe: Recipe) -> None:
    """Raise RecipeError for layers and parts that are named wrongly, or that the base model does not have or cannot do
    without; FamilyError for a format that its family has not."""
    order = [search.parse_layer(text) for text in recipe.rank.layers] if recipe.rank else []
    config = registry.local_config(recipe.model, recipe.revision)
    if config is None:
        return
    family = registry.get(str(config.model_type))
    search.refuse_removals(family, config, order)
    if recipe.rank and recipe.rank.method != "explicit":
        search.stacks_of(family, recipe.rank.scope)
    for name in ("finetune", "distil", "qlora"):
        section = getattr(recipe, name)
        for part in section.freeze if section else ():
            if part not in family.parts:
                raise RecipeError(f"{name}.freeze: a {family.model_type} model has no {part}.", "Leave it out.")
    for name in recipe.export.formats if recipe.export else ():
        calibrated = getattr(formats.get(name), "CALIBRATED", False)
        if (name.startswith("gguf") and family.tensors.gguf is None) or (calibrated and not family.decoder.line):
            raise FamilyError(
                f"export.formats: {name} is not written of {family.model_type} models.", "Export another format."
            )


def refuse_tokenizer(recipe: Recipe) -> None:
    """Raise FamilyError for a local model whose vocabulary cannot be trimmed."""
    there = {name for name in ("tokenizer.json", "tekken.json") if (Path(recipe.model) / name).is_file()}
    if recipe.trim and there == {"tekken.json"}:
        raise FamilyError(
            f"trim: {recipe.model} has a tekken tokenizer, which no tokenizer.json describes: its vocabulary cannot be "
            "trimmed.",
            "Leave trim: out.",
        )


def metrics_of(recipe: Recipe) -> list[tuple[str, str, str]]:
    """(split, setting, name) of every metric that the recipe will compute."""
    found = []
    if recipe.evaluate and recipe.translate:
        found += [(str(recipe.translate.split), "evaluate.metrics", name) for name in recipe.evaluate.metrics]
    if recipe.pseudolabel and recipe.pseudolabel.filter.min_comet is not None:
        found.append(("train", "pseudolabel.filter.comet", recipe.pseudolabel.filter.comet))
    return found


def refuse_sources(recipe: Recipe, read: Callable[[str], Sequence[Clip]]) -> None:
    """Raise DataError where a metric needs source texts that the clips of its split lack. read: split -> clips."""
    for split, where, name in metrics_of(recipe):
        metric: Any = metrics.get(name)
        if not metric.needs_sources:
            continue
        clips = read(split)
        lacking = [clip.id for clip in clips if not (clip.source_text or "").strip()]
        if lacking:
            raise DataError(
                f"{where}: {name} needs source texts, and {len(lacking)} of {len(clips)} {split} clips have none, "
                f"{lacking[0]} among them.",
                "Give the corpus a source_text column, or leave the metric out.",
            )
