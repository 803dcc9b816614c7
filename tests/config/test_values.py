"""A recipe as a value is the recipe of its file, and settings replace its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.config import recipe as recipes
from sordino.config.values import with_settings
from sordino.errors import RecipeError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_recipe_as_a_value_is_the_recipe_of_its_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the demo's model is
    recipe = recipes.load(name)
    assert with_settings(recipe, {}) == recipe
    changed = with_settings(recipe, {"seed": 3, "rank": {"remove": 20}, "translate": {"batch_size": 2}, "report": None})
    assert changed.rank and changed.translate
    assert (changed.seed, changed.rank.remove, changed.translate.batch_size, changed.report) == (3, 20, 2, None)
    with pytest.raises(RecipeError, match=r"rank\.remove: must be at least 1"):
        with_settings(recipe, {"rank": {"remove": 0}})
