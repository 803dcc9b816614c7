"""Recipes: one experiment per YAML file, one section per stage.

A section that is present is a stage that runs. `load` reads the file, applies `key=value` overrides, refuses
unknown keys (with the near match), checks types and contradictions, and reports all mistakes at once. The result
is frozen and fully resolved: what is recorded in stage.json is what ran.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sordino.config import parsing
from sordino.config.schema import DataSection, FilterSection, Format, PseudolabelSection, Recipe
from sordino.errors import RecipeError
from sordino.languages import language_code


def load(file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides (dotted keys, YAML values).

    Raises RecipeError that lists every mistake.
    """
    path = Path(file)
    if not path.is_file():
        raise RecipeError(f"there is no recipe {path}.", "recipes/ holds examples to copy.")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds no settings.", "A recipe is a YAML mapping; see recipes/demo.yaml.")
    problems: list[str] = []
    for override in overrides:
        parsing.override(Recipe, raw, override, problems)
    recipe = parse(raw, problems, str(path))
    return recipe


def parse(raw: Mapping[str, Any], problems: list[str], origin: str) -> Recipe:
    """A mapping -> Recipe with names resolved. Raises RecipeError with all of `problems` and its own."""
    recipe = _default_formats(typing.cast(Recipe, parsing.section(Recipe, raw, "", problems)))
    if not problems:
        _contradictions(recipe, problems)
        _budgets(recipe, problems)
    if problems:
        raise RecipeError(f"{origin}: " + "; ".join(problems) + ".")
    try:
        name = recipe.name.format(source=language_code(recipe.source), target=language_code(recipe.target))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise RecipeError(f"{origin}: name: '{recipe.name}' may use {{source}} and {{target}} only.") from error
    if "/" in name or name in ("", ".", ".."):
        raise RecipeError(f"{origin}: name: '{name}' must be a plain directory name.", "Use `out` for its parent.")
    return dataclasses.replace(recipe, name=name)


def _default_formats(recipe: Recipe) -> Recipe:
    section = recipe.export
    if not section or section.formats:
        return recipe
    formats: tuple[Format, ...] = ("mixed",) if section.budget_gb or section.budget_ratio else ("nf4",)
    return dataclasses.replace(recipe, export=dataclasses.replace(section, formats=formats))


def _contradictions(recipe: Recipe, problems: list[str]) -> None:
    """Settings that are each valid but cannot be together."""
    if not recipe.model:
        problems.append("model: missing (a directory or a Hub id)")
    if recipe.data is None or not recipe.data.path:
        problems.append("data.path: missing (where the corpus is)")
    if recipe.data is not None:
        _corpora(recipe.data, problems)
    if len(recipe.prompt.example) not in (0, 2):
        problems.append("prompt.example: give a sentence and its translation, or nothing")
    rank = recipe.rank
    if rank and rank.method == "explicit" and not rank.layers:
        problems.append("rank.layers: method 'explicit' needs the layers to remove")
    if rank and rank.method != "explicit" and rank.layers:
        problems.append(f"rank.layers: not used by method '{rank.method}'; use method: explicit")
    if rank and rank.criterion in ("influence", "angular") and rank.scope != "decoder":
        problems.append(f"rank.criterion: '{rank.criterion}' is of decoder layers; use scope: decoder")
    if rank and rank.search == "racing" and rank.criterion in ("loss", "kl", "influence", "angular"):
        problems.append(f"rank.search: '{rank.criterion}' is cheap enough for exact; racing is for translation scores")
    if rank and recipe.prune and recipe.prune.remove:
        ranked = len(rank.layers) if rank.method == "explicit" else rank.remove
        if recipe.prune.remove > ranked:
            problems.append(f"prune.remove: {recipe.prune.remove}, but rank finds {ranked} removals")
    if recipe.prune and not rank:
        problems.append("prune: needs the rank section (method: explicit takes a list by hand)")
    if recipe.prune and recipe.prune.of == "teacher" and not recipe.finetune:
        problems.append("prune.of: there is no teacher without the finetune section")
    if recipe.distil and not recipe.prune:
        problems.append("distil: needs the prune section, since it heals a pruned model")
    if recipe.pseudolabel and not recipe.finetune:
        problems.append("pseudolabel: needs the finetune section, which makes the teacher")
    if recipe.pseudolabel:
        _labels(recipe.pseudolabel, problems)
    if recipe.merge and not recipe.qlora:
        problems.append("merge: needs the qlora section, which makes the adapter")
    _mixes(recipe, problems)
    _starts(recipe, problems)
    _trim(recipe, problems)
    for name in ("finetune", "distil", "qlora"):
        section = getattr(recipe, name)
        if section and section.accumulate > 0 and section.batch_size % section.accumulate:
            problems.append(f"{name}.accumulate: must divide batch_size")
    if recipe.qlora and recipe.qlora.freeze:
        problems.append("qlora.freeze: an adapter's base is frozen whole; use qlora.scope: decoder")
    _ranges(recipe, "", problems)


# the least value that makes sense, wherever a setting of this name stands
AT_LEAST = {
    "batch_size": 1, "accumulate": 1, "max_steps": 1, "checkpoint_steps": 1, "max_new_tokens": 1, "rows": 1,
    "clips": 1, "remove": 1, "rank": 1, "alpha": 1, "oversample": 1, "protect_first": 0, "protect_last": 0, "extra": 0,
    "select": 0, "dev": 0, "test": 0, "warmup_ratio": 0, "weight_decay": 0, "dropout": 0, "bootstrap": 0, "samples": 0,
    "epsilon": 0, "min_chrf": 0, "calibration": 1, "tokens": 1,
}  # fmt: skip
ABOVE_ZERO = ("epochs", "lr", "max_grad_norm", "temperature", "budget_gb", "budget_ratio")
BELOW_ONE = ("warmup_ratio", "dropout", "epsilon", "budget_ratio")


def _ranges(section: Any, where: str, problems: list[str]) -> None:
    """Numbers that no stage could use, in every section."""
    for each in dataclasses.fields(section):
        value, spot, name = getattr(section, each.name), f"{where}{each.name}", each.name
        if dataclasses.is_dataclass(value):
            _ranges(value, f"{spot}.", problems)
        elif not isinstance(value, (int, float)):
            continue
        elif not math.isfinite(value):
            problems.append(f"{spot}: {value} is not a number to compute with")
        elif name in AT_LEAST and value < AT_LEAST[name]:
            problems.append(f"{spot}: must be at least {AT_LEAST[name]}, found {value:g}")
        elif name in ABOVE_ZERO and value <= 0:
            problems.append(f"{spot}: must be above 0, found {value:g}")
        elif name in BELOW_ONE and value >= 1:
            problems.append(f"{spot}: must be below 1, found {value:g}")


def _mixes(recipe: Recipe, problems: list[str]) -> None:
    """A student's training clips must come from somewhere."""
    for name in ("distil", "qlora"):
        section = getattr(recipe, name)
        if section is None:
            continue
        if section.mix.pseudo and not recipe.pseudolabel:
            problems.append(f"{name}.mix.pseudo: needs the pseudolabel section, or set it to false")
        if not section.mix.pseudo and not section.mix.authentic and not section.mix.extra:
            problems.append(f"{name}.mix: nothing is left to train on")
        if section.mix.extra and (recipe.data is None or recipe.data.extra is None):
            problems.append(f"{name}.mix.extra: needs data.extra, the out-of-domain corpus")


def _labels(section: PseudolabelSection, problems: list[str]) -> None:
    """Settings of pseudolabel that only one method uses, and limits that nothing could pass."""
    default = PseudolabelSection()
    for name in ("samples", "epsilon", "temperature") if section.method == "greedy" else ():
        if getattr(section, name) != getattr(default, name):
            problems.append(f"pseudolabel.{name}: not used by method 'greedy'; use method: mbr")
    if section.method == "mbr" and section.samples < 2:
        problems.append("pseudolabel.samples: mbr compares samples with each other; at least 2")
    limits = section.filter
    if limits.max_ratio is not None and limits.max_ratio < 1:
        problems.append("pseudolabel.filter.max_ratio: must be at least 1 (2: up to twice or half the reference)")
    if limits.min_chrf is not None and limits.min_chrf > 100:
        problems.append("pseudolabel.filter.min_chrf: chrF is 0 to 100")
    if limits.comet != FilterSection().comet and limits.min_comet is None:
        problems.append("pseudolabel.filter.comet: not used without min_comet")


def _corpora(data: DataSection, problems: list[str]) -> None:
    """What the corpora are asked for must be possible."""
    for where, section in (("data", data), ("data.extra", data.extra)):
        if section is None:
            continue
        if where == "data.extra" and not section.path:
            problems.append("data.extra.path: missing (where the out-of-domain corpus is)")
        if section.max_ratio is not None and section.max_ratio < 1:
            problems.append(f"{where}.max_ratio: must be at least 1 (2: up to twice or half the usual length)")
        if (section.min_seconds or 0) > (section.max_seconds or math.inf):
            problems.append(f"{where}.min_seconds: is above max_seconds")
        if section.rows is not None and section.rows < 1:
            problems.append(f"{where}.rows: must be at least 1")
    if data.split == "paper" and data.splits.by == "group":
        problems.append("data.split: 'paper' has the same talks in train and test; say so with splits.by: segment")
    if data.extra and data.extra.split == "paper":
        problems.append("data.extra.split: the extra corpus is for training alone")


def _budgets(recipe: Recipe, problems: list[str]) -> None:
    """Budgets of format mixed, and what a sweep is made from."""
    export, sweep = recipe.export, recipe.sweep
    if export and export.budget_gb is not None and export.budget_ratio is not None:
        problems.append("export: give budget_gb or budget_ratio, not both")
    budgeted = export and (export.budget_gb is not None or export.budget_ratio is not None)
    if export and "mixed" in export.formats and not budgeted:
        problems.append("export.formats: 'mixed' needs export.budget_gb or export.budget_ratio")
    if export and "mixed" not in export.formats and budgeted:
        problems.append("export: a budget is for format mixed, which is not among the formats")
    if not sweep:
        return
    if not recipe.translate or not recipe.evaluate or "chrf" not in (m.lower() for m in recipe.evaluate.metrics):
        problems.append("sweep: needs translate, and evaluate with chrf among its metrics")
    if any(not 0 < ratio < 1 for ratio in sweep.budget_ratios):
        problems.append("sweep.budget_ratios: each must be above 0 and below 1")
    ranked = (len(recipe.rank.layers) if recipe.rank.method == "explicit" else recipe.rank.remove) if recipe.rank else 0
    if any(not 1 <= count <= ranked for count in sweep.remove):
        problems.append(f"sweep.remove: each must be at least 1 and at most {ranked}, the layers that are ranked")


def _starts(recipe: Recipe, problems: list[str]) -> None:
    """Every model that a section names must be one that the recipe makes."""
    made = {"base"}
    made |= {"teacher"} if recipe.finetune else set()
    made |= {"pruned"} if recipe.prune else set()
    made |= {"student"} if recipe.distil else set()
    made |= {"merged"} if recipe.merge else set()
    starts = [
        ("qlora.start", recipe.qlora, "start"),
        ("trim.of", recipe.trim, "of"),
        ("export.of", recipe.export, "of"),
    ]
    for where, section, key in starts:
        made |= {"trimmed"} if where == "export.of" and recipe.trim else set()
        wanted = getattr(section, key, "auto")
        if wanted not in ("auto", *made):
            problems.append(f"{where}: this recipe makes no '{wanted}' model")
        if section and key == "of" and wanted == "auto" and recipe.qlora and not recipe.merge:
            problems.append(f"{where[:-3]}: the adapter would be left out; add merge:, or say {where}")
    for wanted in recipe.sweep.of if recipe.sweep else ():
        if wanted not in made:
            problems.append(f"sweep.of: this recipe makes no '{wanted}' model")
    made |= {"adapter"} if recipe.qlora else set()
    made |= set(recipe.export.formats) if recipe.export else set()
    for wanted in recipe.translate.systems if recipe.translate else ():
        if wanted not in made:
            problems.append(f"translate.systems: this recipe makes no '{wanted}'; it makes {', '.join(sorted(made))}")


def _trim(recipe: Recipe, problems: list[str]) -> None:
    """There must be texts to keep the tokens of."""
    trim = recipe.trim
    if trim and not trim.splits and not recipe.pseudolabel:
        problems.append("trim.splits: there are no texts to keep the tokens of")
    if trim and "extra" in trim.splits and (recipe.data is None or recipe.data.extra is None):
        problems.append("trim.splits: 'extra' needs data.extra, the out-of-domain corpus")
