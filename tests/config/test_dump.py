"""A resolved recipe as YAML reads back as the same recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.config.dump import to_yaml
from sordino.config.recipe import load, shipped

CHANGES = ["sweep={}", "report=", "prompt.example=[a, 'b: #1']", "name='ü: #1'", "export.formats=[bf16]"]


@pytest.mark.parametrize("name", shipped())
@pytest.mark.parametrize("changes", [[], CHANGES])
def test_it_reads_back(name: str, changes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # the demo's paths
    recipe = load(shipped()[name], changes)
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe), encoding="utf-8")
    assert load(file) == recipe
    assert "sweep: false" in to_yaml(recipe) or changes
