"""The shipped recipes run end to end, with the pico model and corpus in place of the real ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.config.recipe import load, shipped
from sordino.models import registry
from tests.stages.runs import Made, answer, write_corpus

RECIPES = list(shipped().values())
TINY = {"google/gemma-4-12B-it": "gemma4_unified"}  # what stands for a recipe's model; else Qwen2-Audio


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("recipes") / "extra", ("train",) * 4, start=60)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> directory of its tiny model with six decoder layers."""

    @functools.cache
    def make(family: str) -> Path:
        directory = tmp_path_factory.mktemp(family)
        registry.get(family).tiny(str(directory), 6, 3, 1)
        return directory

    return make


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_shipped_recipe_runs(
    made: Made,
    models: Callable[[str], Path],
    extra: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load(file)
    family = TINY.get(recipe.model) or next((name for name in registry.FAMILIES if file.stem.startswith(name)), None)
    model = models(family) if family else made.model  # Qwen2-Audio's
    changes = [f"model={model}", f"data.path={made.corpus}", "data.corpus=folder", f"out={tmp_path}", "device=cpu"]
    if recipe.data and recipe.data.extra:
        changes += [f"data.extra.path={extra}", "data.extra.corpus=folder", "data.extra.rows="]
    for name in ("finetune", "distil", "qlora"):
        if getattr(recipe, name):
            changes += [f"{name}.max_steps=1", f"{name}.batch_size=2", f"{name}.accumulate=1"]
        if getattr(recipe, name) and name != "finetune" and getattr(recipe, name).mix.extra:
            changes += [f"{name}.mix.extra=2"]
    for name in ("distil.match", "qat", "qat.match"):
        first, _, inner = name.partition(".")
        section = getattr(recipe, first)
        if section and (not inner or getattr(section, inner)):
            changes += [f"{name}.max_steps=1", f"{name}.batch_size=2"]
    if recipe.qat:
        changes += ["qat.budget_ratio=0.4", "qat.sensitivity.clips=2"]
    if recipe.export and recipe.export.budget_ratio:
        changes += ["export.budget_ratio=0.4", "export.sensitivity.clips=2"]
    if recipe.rank and recipe.rank.method == "explicit":
        changes += ["rank.layers=[1, encoder.1]"]
    if recipe.rank and recipe.rank.method == "iterative":
        changes += ["rank.remove=1", "rank.clips=2", "rank.protect_first=2", "rank.protect_last=2"]
    for name in ("rank", "pseudolabel", "translate"):
        if getattr(recipe, name):
            changes += [f"{name}.max_new_tokens=2"]
    if recipe.trim and recipe.trim.tokens:
        changes += ["trim.tokens=304"]  # of 312
    if recipe.pseudolabel:
        changes += ["pseudolabel.filter.cut=false"]  # two tokens are no sentence
    last = recipe.export.formats[-1] if recipe.export else "student"
    changes += [f"translate.systems=[{last}]", "evaluate.bootstrap=5"]
    found = answer(capsys, "run", file, *changes)
    wanted = ["finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge", "trim", "qat", "export"]
    assert found["ran"] == [
        "prepare",
        *(name for name in wanted if getattr(recipe, name) is not None),
        "translate",
        "evaluate",
        "report",
    ]
    assert list(found["scores"]["systems"]) == [last]
