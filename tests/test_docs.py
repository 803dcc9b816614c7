"""Pages name files that are there, and link to pages that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sordino.config.recipe import load, shipped
from sordino.models import registry
from tests.models.table import FACTS

ROOT = Path(__file__).parents[1]
HISTORY = ROOT / "docs" / "log.md"  # names files as they were called
PAGES = sorted({*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")} - {HISTORY, ROOT / "CHANGELOG.md"})
PATH = re.compile(r"`((?:src|tests|benchmarks|demo|docs|\.ci|\.github)/[\w./-]*[\w/])`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = [ROOT / path for path in PATH.findall(text) if "NAME" not in path]
    paths += [page.parent / link for link in LINK.findall(text)]
    assert [str(path.relative_to(ROOT)) for path in paths if not path.exists()] == []


def test_every_page_is_named_in_the_tree() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("### The tree")[1]
    pages = {page.stem for page in ROOT.glob("docs/*.md")}
    assert {page for page in pages if not re.search(rf"\b{page}\b", tree)} == set()


def test_every_room_is_in_the_tree() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("### The tree")[1]
    entries = [path for path in (ROOT / "src" / "sordino").iterdir() if not path.name.startswith("_")]
    rooms = {path.name + "/" * path.is_dir() for path in entries if path.suffix in ("", ".py")}
    assert "pruning/" in rooms and "errors.py" in rooms
    assert {room for room in rooms if room not in tree} == set()


def test_messages_that_the_troubleshooting_page_explains_are_ours() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    source = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s+f?"', "", source)  # literals that go on in the next line
    assert len(rows) > 10
    assert [row for row in rows if row not in source] == []


def test_every_family_has_a_row_and_every_recipes_model_is_named() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "families.md").read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted(registry.FAMILIES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    models = {load(path).model for path in shipped().values()}
    assert {model for model in models if registry.is_hub_id(model) and f"`{model}`" not in readme} == set()


def test_every_family_has_a_recipe() -> None:
    models = {load(path).model for path in shipped().values()}
    assert {family for family, facts in FACTS.items() if not models & {*facts.configs, *facts.more}} == set()
