"""The tables of families say what passes: each capability is tried on each family, and done and checked, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.models import registry
from tests.models import table
from tests.models.capabilities import CAPABILITIES, Capability, works

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TEXTS = {page: (table.ROOT / page).read_text(encoding="utf-8") for page in table.PAGES}


def rows(page: str) -> dict[str, dict[str, str]]:
    """First cell of a row -> column -> cell."""
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.block(TEXTS[page]).split("\n")
    )
    return {line[0].strip("`"): dict(zip(head, line, strict=True)) for line in lines}


def ticks() -> table.Ticks:
    """What the larger page says."""
    said = rows("docs/families.md")
    return {family: {c.column: row[c.column] == "✓" for c in CAPABILITIES} for family, row in said.items()}


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda capability: capability.column)
@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_what_the_table_says_is_what_passes(
    pico_dir: Callable[[str], Path], tmp_path: Path, family: str, capability: Capability
) -> None:
    assert works(capability, pico_dir(family), tmp_path) == ticks()[family][capability.column]


@pytest.mark.parametrize("page", table.PAGES)
def test_the_pages_are_what_is_written(page: str) -> None:
    assert table.FACTS.keys() == registry.FAMILIES.keys()
    assert table.block(TEXTS[page]) == table.table(page, ticks()), "run: python -m tests.models.table"


def test_a_page_without_its_place_is_noticed() -> None:
    with pytest.raises(ValueError, match="0 places"):
        table.block("# A page")
