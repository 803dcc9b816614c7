"""Settings that are each valid but cannot be together, and what no recipe can do without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from sordino.config.chain import AUTO, CHAIN, EXPORTS, MERGED, exports_qat, makes
from sordino.config.schema import FilterSection, PseudolabelSection, Recipe, ResourcesSection


def contradictions(recipe: Recipe) -> list[str]:
    """Every problem in words, each with the setting it is about."""
    rules = _needs, _resources, _data, _rank, _prune, _labels, _training, _mixes, _models, _trim, _qat, _export, _sweep
    return [problem for rule in rules for problem in rule(recipe)]


def _needs(recipe: Recipe) -> Iterator[str]:
    """What every recipe must say, and sections that rest on others."""
    if not recipe.model:
        yield "model: missing (a directory or a Hub id)"
    if recipe.data is None or not recipe.data.path:
        yield "data.path: missing (where the corpus is)"
    if len(recipe.prompt.example) not in (0, 2):
        yield "prompt.example: give a sentence and its translation, or nothing"
    if recipe.prune and not recipe.rank:
        yield "prune: needs the rank section (method: explicit takes a list by hand)"
    if recipe.distil and not recipe.prune:
        yield "distil: needs the prune section, since it heals a pruned model"
    if recipe.pseudolabel and not recipe.finetune:
        yield "pseudolabel: needs the finetune section, which makes the teacher"
    if recipe.merge and not recipe.qlora:
        yield "merge: needs the qlora section, which makes the adapter"


def _resources(recipe: Recipe) -> Iterator[str]:
    resources = recipe.resources
    if resources.executor == "ray" and recipe.device not in ("auto", "cpu", "cuda"):
        yield "device: Ray deals out the GPUs; say auto, cpu or cuda"
    if resources.executor == "ray" and recipe.pseudolabel and recipe.pseudolabel.engine == "vllm":
        yield "pseudolabel.engine: vllm decodes in one process of its own; use resources.executor: threads"
    for name in ("workers", "worker_cpus", "ray_address") if resources.executor == "threads" else ():
        if getattr(resources, name) != getattr(ResourcesSection(), name):
            yield f"resources.{name}: not used by executor 'threads'; use executor: ray"


def _data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    if data is None:
        return
    for where, section in (("data", data), ("data.extra", data.extra)):
        if section and (section.min_seconds or 0) > (section.max_seconds or math.inf):
            yield f"{where}.min_seconds: is above max_seconds"
    if data.split == "paper" and data.splits.by == "group":
        yield "data.split: 'paper' has the same talks in train and test; say so with splits.by: segment"
    if data.extra and not data.extra.path:
        yield "data.extra.path: missing (where the out-of-domain corpus is)"
    if data.extra and data.extra.split == "paper":
        yield "data.extra.split: the extra corpus is for training alone"


def _rank(recipe: Recipe) -> Iterator[str]:
    rank = recipe.rank
    if rank is None:
        return
    if rank.method == "explicit" and not rank.layers:
        yield "rank.layers: method 'explicit' needs the layers to remove"
    if rank.method != "explicit" and rank.layers:
        yield f"rank.layers: not used by method '{rank.method}'; use method: explicit"
    if rank.criterion in ("influence", "angular") and rank.scope != "decoder":
        yield f"rank.criterion: '{rank.criterion}' is of decoder layers; use scope: decoder"
    if rank.method == "block" and rank.scope != "decoder":
        yield "rank.method: 'block' is of decoder layers; use scope: decoder"
    if rank.polish != "none" and rank.method != "iterative":
        yield f"rank.polish: not used by method '{rank.method}'; use method: iterative"
    if rank.polish != "none" and rank.criterion in ("influence", "angular"):
        yield f"rank.polish: '{rank.criterion}' scores a layer, and a swap compares models; use another criterion"
    if rank.search == "racing" and rank.criterion in ("loss", "kl", "influence", "angular"):
        yield f"rank.search: '{rank.criterion}' is cheap enough for exact; racing is for translation scores"


def _prune(recipe: Recipe) -> Iterator[str]:
    prune = recipe.prune
    if prune and recipe.rank and (prune.remove or 0) > ranked(recipe):
        yield f"prune.remove: {prune.remove}, but rank finds {ranked(recipe)} removals"


def ranked(recipe: Recipe) -> int:
    """How many layers will be ranked."""
    if recipe.rank is None:
        return 0
    return len(recipe.rank.layers) if recipe.rank.method == "explicit" else recipe.rank.remove


def _labels(recipe: Recipe) -> Iterator[str]:
    """Settings of pseudolabel that are not used as the others are."""
    section = recipe.pseudolabel
    if section is None:
        return
    if section.method == "mbr" and section.keep > section.samples:
        yield f"pseudolabel.keep: {section.keep} of {section.samples} samples"
    for name in ("samples", "epsilon", "temperature", "keep") if section.method == "greedy" else ():
        if getattr(section, name) != getattr(PseudolabelSection(), name):
            yield f"pseudolabel.{name}: not used by method 'greedy'; use method: mbr"
    if section.filter.comet != FilterSection().comet and section.filter.min_comet is None:
        yield "pseudolabel.filter.comet: not used without min_comet"
    if section.engine == "vllm" and section.method == "mbr":
        yield "pseudolabel.engine: vllm decodes greedily; transformers draws the samples of method 'mbr'"


def _training(recipe: Recipe) -> Iterator[str]:
    sections = {name: getattr(recipe, name) for name in ("finetune", "distil", "qlora", "qat")}
    matches = {f"{name}.match": sections[name].match for name in ("distil", "qat") if sections[name]}
    for name, section in (sections | matches).items():
        if section is None:
            continue
        shares = section.accumulate * recipe.resources.devices
        if shares > 0 and section.batch_size % section.accumulate:
            yield f"{name}.accumulate: must divide batch_size"
        elif shares > 0 and section.batch_size % shares:
            times = f"{recipe.resources.devices} devices times accumulate {section.accumulate}"
            yield f"{name}.batch_size: {section.batch_size} clips cannot be dealt evenly to {times}"
        if section.optimizer == "adamw8bit" and recipe.resources.devices > 1 and name != "qlora":
            yield f"{name}.optimizer: adamw8bit is for one device; with several, moments are sharded: use adamw"
    if recipe.distil and recipe.distil.heal == "each" and recipe.resources.devices > 1:
        yield "distil.heal: 'each' trains on one device; set resources.devices to 1"
    if recipe.resources.devices > 1:
        twice = {"qat": recipe.qat, "distil.match": recipe.distil and recipe.distil.match}
        for name in (name for name, section in twice.items() if section):
            yield f"{name}: trains on one device; set resources.devices to 1"
    if recipe.qlora and recipe.qlora.precision == "bfloat16-sharded":
        yield "qlora.precision: an adapter's model is not sharded; use bfloat16-mixed"
    if recipe.resources.devices > 1 and ":" in recipe.device:
        yield f"device: '{recipe.device}' is one device; with resources.devices give its kind"
    if recipe.qlora and recipe.qlora.freeze:
        yield "qlora.freeze: an adapter's base is frozen whole; use qlora.scope: decoder"
    for name, section in matches.items():
        if section and section.freeze:
            yield f"{name}.freeze: only the encoder is trained"
    if recipe.distil and recipe.distil.match and recipe.distil.heal == "each":
        yield "distil.match: heal: each heals with texts after every removal; use heal: once"


def _mixes(recipe: Recipe) -> Iterator[str]:
    """A student's training clips, and what it learns of them, must come from somewhere."""
    for name in ("distil", "qlora", "qat"):
        section = getattr(recipe, name)
        if section is None:
            continue
        if section.mix.pseudo and not recipe.pseudolabel:
            yield f"{name}.mix.pseudo: needs the pseudolabel section, or set it to false"
        if not section.mix.pseudo and not section.mix.authentic and not section.mix.extra:
            yield f"{name}.mix: nothing is left to train on"
        if section.logits.weight and not recipe.finetune:
            yield f"{name}.logits: needs the finetune section, which makes the teacher"
        for unused in () if section.logits.weight else _set(section.logits, ("top", "ce_only_end")):
            yield f"{name}.logits.{unused}: not used without {name}.logits.weight"
        if section.mix.extra and (recipe.data is None or recipe.data.extra is None):
            yield f"{name}.mix.extra: needs data.extra, the out-of-domain corpus"


def _models(recipe: Recipe) -> Iterator[str]:
    """Every model that a section names must be one that the recipe makes."""
    models = {model.key for model in CHAIN if makes(recipe, model)}
    for made in (*CHAIN, EXPORTS):
        section = getattr(recipe, made.section) if made.setting else None
        if section is None:
            continue
        where, start = f"{made.section}.{made.setting}", getattr(section, made.setting)
        if start not in (AUTO, *models):
            yield f"{where}: this recipe makes no '{start}' model"
        if start == AUTO and MERGED in made.starts and recipe.qlora and not recipe.merge:
            yield f"{made.section}: the adapter would be left out; add merge:, or say {where}"
    for model in recipe.sweep.of if recipe.sweep else ():
        if model not in models:
            yield f"sweep.of: this recipe makes no '{model}' model"
    systems = models | set(recipe.export.formats if recipe.export else ())
    for system in recipe.translate.systems if recipe.translate else ():
        if system not in systems:
            yield f"translate.systems: this recipe makes no '{system}'; it makes {', '.join(sorted(systems))}"


def _trim(recipe: Recipe) -> Iterator[str]:
    """There must be texts to keep the tokens of."""
    trim = recipe.trim
    if trim and not trim.splits and not recipe.pseudolabel:
        yield "trim.splits: there are no texts to keep the tokens of"
    if trim and "extra" in trim.splits and (recipe.data is None or recipe.data.extra is None):
        yield "trim.splits: 'extra' needs data.extra, the out-of-domain corpus"


def _qat(recipe: Recipe) -> Iterator[str]:
    """A mixture has a budget, and all of it is trained."""
    qat = recipe.qat
    if qat is None:
        return
    budgets = [name for name in ("budget_gb", "budget_ratio") if getattr(qat, name) is not None]
    if qat.format == "mixed" and len(budgets) != 1:
        yield "qat: give budget_gb or budget_ratio, not both" if budgets else "qat: needs budget_gb or budget_ratio"
    if qat.format != "mixed" and budgets:
        yield f"qat.{budgets[0]}: '{qat.format}' has one size; use format: mixed"


def unused(recipe: Recipe) -> list[str]:
    """Settings that another one makes void, and that do no harm."""
    export, sweep = recipe.export, recipe.sweep
    rows: list[tuple[Any, str, str, tuple[str, ...]]] = []  # section, its key, the format it is of, settings
    if export:
        of_mixed = ("budget_gb", "budget_ratio") if sweep else ("budget_gb", "budget_ratio", "sensitivity")
        rows.append((export, "export", "mixed", of_mixed))  # a sweep's points are measured and rounded alike
        rows.append((export, "export", "w4a16-gptq", () if sweep else ("calibration",)))
    if sweep and sweep.formats:
        rows.append((sweep, "sweep", "mixed", ("budget_ratios",)))
    return [
        f"{key}.{name}: not used, since '{form}' is not among the formats"
        for section, key, form, names in rows
        if form not in section.formats
        for name in _set(section, names)
    ]


def _set(section: Any, names: Sequence[str]) -> list[str]:
    """Those of the settings that are not their defaults."""
    return [name for name in names if getattr(section, name) != getattr(type(section)(), name)]


def _export(recipe: Recipe) -> Iterator[str]:
    """Format mixed has a budget."""
    export = recipe.export
    if export is None:
        return
    if export.budget_gb is not None and export.budget_ratio is not None:
        yield "export: give budget_gb or budget_ratio, not both"
    budgeted = export.budget_gb is not None or export.budget_ratio is not None
    if exports_qat(recipe):
        assert recipe.qat
        for name in export.formats:
            if name != recipe.qat.format:
                yield (
                    f"export.formats: '{name}' would round again what qat has trained through the rounding of "
                    f"'{recipe.qat.format}'; export that, or another model (export.of)"
                )
        if budgeted:
            yield "export: qat has its own budget, by which the bits are chosen; leave this one out"
    elif "mixed" in export.formats and not budgeted:
        yield "export.formats: 'mixed' needs export.budget_gb or export.budget_ratio"


def _sweep(recipe: Recipe) -> Iterator[str]:
    sweep = recipe.sweep
    if sweep is None:
        return
    if not recipe.translate or not recipe.evaluate or "chrf" not in (m.lower() for m in recipe.evaluate.metrics):
        yield "sweep: needs translate, and evaluate with chrf among its metrics"
    if any(count > ranked(recipe) for count in sweep.remove):
        yield f"sweep.remove: each must be at least 1 and at most {ranked(recipe)}, the layers that are ranked"
