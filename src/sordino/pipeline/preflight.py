"""What is refused before anything runs: mistakes that a later stage would find, perhaps after hours of training.

No torch where the recipe does not ask for an accelerator: a plan is made in a moment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from sordino.config import chain, records
from sordino.config.contradictions import unused
from sordino.config.run_layout import PSEUDO, RunLayout
from sordino.config.schema import CorpusSection, Recipe
from sordino.data import corpora, manifest
from sordino.data.clip import Clip
from sordino.errors import DataError, FamilyError, RecipeError, SordinoError
from sordino.formats import registry as formats
from sordino.formats.registry import MIXED
from sordino.metrics import comet_files
from sordino.metrics import registry as metrics
from sordino.models import registry, shapes, vllm_environment
from sordino.pipeline import launching
from sordino.pipeline.device import device_type
from sordino.pipeline.forecast import budget_bytes, config_of, whole_bytes
from sordino.pruning.layer import parse_layer, refuse_removals, stacks_of
from sordino.runtime import ray_workers


def refuse(recipe: Recipe) -> None:
    """Raise SordinoError for packages that are not installed, devices that this machine lacks, and for all that
    `refuse_plan` refuses."""
    if recipe.resources.executor == "ray":
        ray_workers.require()
    for error in not_installed(recipe).values():
        raise error
    launching.refuse(recipe)
    refuse_plan(recipe)


def refuse_plan(recipe: Recipe) -> None:
    """Raise SordinoError for a device, layers, metrics and texts that are not there, and a tokenizer that cannot be
    trimmed."""
    device_type(recipe.device)
    refuse_layers(recipe)
    refuse_tokenizer(recipe)
    for _, setting, metric in metrics_of(recipe):
        word, _, model = metrics.canonical(metric).partition(":")
        if setting != "evaluate.metrics" and word not in metrics.WITH_MODEL:
            raise RecipeError(f"{setting}: '{metric}' is no COMET.", "Write comet, or comet:MODEL.")
        if model:
            comet_files.local(model)
    layout = RunLayout(recipe.directory)
    if records.read_stage(layout.data) is not None:
        refuse_sources(recipe, lambda split: manifest.read(layout.manifest(split)))


def not_installed(recipe: Recipe) -> dict[str, FamilyError]:
    """Export formats that need packages which are not there, to write them or translate with them; vllm, where it is to
    translate and its environment is not there; what to do."""
    errors: dict[str, FamilyError] = {}
    for name in recipe.export.formats if recipe.export else ():
        try:
            formats.require(name)
        except FamilyError as error:
            errors[name] = error
    for system in chain.scored(recipe) if recipe.translate else ():
        try:
            formats.require_to_translate(system)
        except FamilyError as error:
            remedy = f"{error.remedy} Or leave {system} out of translate.systems."
            errors.setdefault(system, FamilyError(error.problem, remedy))
    if recipe.pseudolabel and recipe.pseudolabel.engine == "vllm" and not (recipe.directory / PSEUDO).is_dir():
        try:
            vllm_environment.require()
        except FamilyError as error:
            errors["vllm"] = error
    return errors


def problems(recipe: Recipe) -> list[SordinoError]:
    """What the first stages will refuse of the base model and the corpora, as far as names and heads can tell."""
    looks: list[Callable[[], object]] = [lambda: registry.is_hub_id(recipe.model) or registry.family_of(recipe.model)]
    data = recipe.data
    for section in (data, data.extra) if data else ():
        if section is not None:
            looks.append(functools.partial(_look_at, recipe, section))
    errors = []
    for look in looks:
        try:
            look()
        except SordinoError as error:
            errors.append(error)
    return errors


def _look_at(recipe: Recipe, section: CorpusSection) -> None:
    corpora.check(section.corpus, section.path, recipe.source, recipe.target, section.texts)


def notes(recipe: Recipe) -> list[str]:
    """What a recipe asks for in vain, and does no harm."""
    lines = unused(recipe)
    config, export = config_of(recipe), recipe.export
    if config is None or export is None or MIXED not in export.formats or not registry.of_config(config).tensors.tables:
        return lines
    if chain.exports_qat(recipe):
        return lines
    budget = budget_bytes(shapes.model(config), export.budget_gb, export.budget_ratio)
    whole = whole_bytes(recipe, config)
    if budget >= whole:
        name = "budget_gb" if export.budget_gb is not None else "budget_ratio"
        took = f"{budget / 1e6:,.1f} MB are no less than the {whole / 1e6:,.1f} MB that the model takes in 16 bits"
        lines.append(f"export.{name}: {took}: format mixed will be a 16-bit copy")
    return lines


def refuse_layers(recipe: Recipe) -> None:
    """Raise RecipeError for layers and parts that are named wrongly, or that the base model does not have or cannot do
    without; FamilyError for a model of no supported family, or a format that its family has not."""
    order = [parse_layer(text) for text in recipe.rank.layers] if recipe.rank else []
    config = config_of(recipe)
    if config is None:  # of a model that is not here yet: loading will say
        return
    family = registry.of_config(config, recipe.model)
    if shapes.known(config):
        refuse_removals(family, config, shapes.layer_counts(config), order)
    if recipe.rank and recipe.rank.method != "explicit":
        stacks_of(family, recipe.rank.scope)
    for name in ("finetune", "distil", "qlora", "qat"):
        section = getattr(recipe, name)
        if getattr(section, "match", None) and not family.audio.cached_parts:
            raise RecipeError(f"{name}.match: a {family.model_type} model has no encoder.", "Leave it out.")
        for part in section.freeze if section else ():
            if part not in family.parts:
                raise RecipeError(f"{name}.freeze: a {family.model_type} model has no {part}.", "Leave it out.")
    for name in recipe.export.formats if recipe.export else ():
        calibrated = name in formats.CALIBRATED
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
    rows = []
    if recipe.evaluate and recipe.translate:
        rows += [(str(recipe.translate.split), "evaluate.metrics", name) for name in recipe.evaluate.metrics]
    if recipe.pseudolabel and recipe.pseudolabel.filter.min_comet is not None:
        rows.append(("train", "pseudolabel.filter.comet", recipe.pseudolabel.filter.comet))
    return rows


def refuse_sources(recipe: Recipe, read: Callable[[str], Sequence[Clip]]) -> None:
    """Raise DataError where a metric needs source texts that the clips of its split lack. read: split -> clips."""
    for split, setting, name in metrics_of(recipe):
        learned = metrics.canonical(name).partition(":")[0] in metrics.WITH_MODEL  # the others count what is written
        if not learned or not metrics.get(name).needs_sources:
            continue
        clips = read(split)
        lacking = [clip.id for clip in clips if not (clip.source_text or "").strip()]
        if lacking:
            raise DataError(
                f"{setting}: {name} needs source texts, and {len(lacking)} of {len(clips)} {split} clips have none, "
                f"{lacking[0]} among them.",
                "Give the corpus a source_text column, or leave the metric out.",
            )
