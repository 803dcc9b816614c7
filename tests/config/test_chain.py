"""The chain of models: one table, which settings and stages agree with, and what each model is made from."""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sordino
from sordino.config import chain, run_layout
from sordino.config.chain import AUTO, CHAIN, EXPORTS, ModelRef
from sordino.config.recipe import parse
from sordino.config.schema import Recipe
from sordino.config.sections import hints, stage_sections
from sordino.pipeline import runner

ROOT = Path(sordino.__file__).parent
KEYS = {model.key for model in CHAIN}
SECTIONS = {name: {} for name in ("finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge", "trim")}


def recipe(**changes: Any) -> Recipe:
    """The whole chain with changes; a section of None is left out."""
    raw = {"name": "r", "model": "owner/base", "revision": "v1", "data": {"path": "corpus"}, **SECTIONS, "export": {}}
    raw |= changes
    return parse({key: value for key, value in raw.items() if value is not None}, [], "test")


def collections(tree: ast.Module) -> Iterator[set[str]]:
    """Strings of every tuple, list, set and of the keys of every dict that is written out; types are left out."""
    types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"
        for inner in ast.walk(node.slice)
    }
    for node in ast.walk(tree):
        if id(node) in types:
            continue
        items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        yield {item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)}


def test_the_table_is_the_only_list_of_models() -> None:
    """'base' and 'teacher' are words with other meanings too; two of the others together are a list of models."""
    named = KEYS - {chain.BASE, chain.TEACHER}
    lists = {
        file.relative_to(ROOT).as_posix()
        for file in ROOT.rglob("*.py")
        for strings in collections(ast.parse(file.read_text(encoding="utf-8")))
        if len(strings & named) > 1
    }
    assert lists == {"config/chain.py"}


def test_the_layout_alone_names_directories() -> None:
    """Sentences aside, which are for people."""
    directories = [stage.directory for stage in runner.pipeline()]
    assert run_layout.DATA in directories
    pattern = re.compile("|".join(map(re.escape, directories)))
    naming = set()
    for file in ROOT.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        if any(isinstance(text, str) and " " not in text and pattern.search(text) for text in strings):
            naming.add(file.relative_to(ROOT).as_posix())
    assert naming == {"config/run_layout.py"}


def test_settings_offer_what_the_table_says() -> None:
    """Types must be written out; they are compared here."""
    for model in (*CHAIN, EXPORTS):
        if model.setting:
            _, section = stage_sections()[model.section]
            assert set(typing.get_args(hints(section)[model.setting])) == {AUTO, *model.starts}
    of = typing.get_args(typing.get_args(hints(stage_sections()["sweep"][1])["of"])[0])
    assert set(of) == KEYS - {chain.ADAPTER, chain.QAT}


def test_stages_make_what_the_table_says() -> None:
    stages = {stage.name: stage.directory for stage in runner.pipeline()}
    assert list(stages) == list(runner.STAGES) == list(stage_sections())
    for model in (*CHAIN[1:], EXPORTS):
        assert stages[model.section] == model.directory


def test_every_start_stands_above() -> None:
    for place, model in enumerate((*CHAIN, EXPORTS)):
        assert set(model.starts) <= {other.key for other in CHAIN[:place]}


@pytest.mark.parametrize(
    ("changes", "key", "ancestry"),
    [
        ({}, "export", ["export", "trimmed", "merged", "adapter", "student", "pruned", "teacher", "base"]),
        ({"trim": None, "merge": None, "qlora": None}, "nf4", ["nf4", "student", "pruned", "teacher", "base"]),
        ({"finetune": None, "pseudolabel": None}, "pruned", ["pruned", "base"]),
        ({"qlora": {"start": "base"}}, "merged", ["merged", "adapter", "base"]),
        ({"prune": {"of": "base"}}, "student", ["student", "pruned", "base"]),
        ({"export": {"of": "pruned"}}, "export", ["export", "pruned", "teacher", "base"]),
        ({"trim": {"of": "teacher"}}, "trimmed", ["trimmed", "teacher", "base"]),
        ({"prune": None, "distil": None}, "adapter", ["adapter", "teacher", "base"]),
    ],
)
def test_what_a_model_is_made_from(changes: dict[str, Any], key: str, ancestry: list[str]) -> None:
    mixes = {"distil": {"mix": {"pseudo": False}}, "qlora": {"mix": {"pseudo": False}}}
    for name, mix in mixes.items():
        if "pseudolabel" in changes and name not in changes:
            changes = changes | {name: mix}
    assert chain.ancestry(recipe(**changes), key) == ancestry


def test_what_is_ranked_is_known_without_pruning() -> None:
    alone = recipe(prune=None, distil=None)
    assert chain.ranked_model(alone) == "teacher"
    assert chain.ranked_model(recipe(**dict.fromkeys(SECTIONS))) == "base"


def test_labels_are_those_of_what_the_recipe_makes() -> None:
    short = recipe(**dict.fromkeys(("qlora", "merge", "trim")), export={"formats": ["nf4", "bf16"]})
    assert list(chain.labels(short).items()) == [
        ("base", "base"),
        ("teacher", "teacher"),
        ("pruned", "pruned"),
        ("student", "healed"),
        ("nf4", "export nf4"),
        ("bf16", "export bf16"),
    ]
    assert chain.scored(short) == list(chain.labels(short))
    assert chain.scored(recipe(translate={"systems": ["student", "nf4"]})) == ["student", "nf4"]


def test_references_say_where_a_model_lies_and_which_revision_it_opens() -> None:
    one = recipe(qlora={"start": "base"})
    run = one.directory
    assert chain.reference(one, "base") == ModelRef("base", "owner/base", "v1")
    assert chain.reference(one, "student") == ModelRef("student", str(run / run_layout.STUDENT))
    assert chain.reference(one, "nf4") == ModelRef("nf4", str(run / "70-export" / "nf4"))
    assert chain.reference(one, "adapter").revision == "v1"  # it is opened on the base model
    assert chain.reference(recipe(), "adapter").revision is None
