"""Recipes that no stage could use: refused at once, in one short line, with nothing built from what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.config import recipe as recipes
from sordino.errors import RecipeError

NEEDED = "model: m\ndata: {path: d}\n"
LEVELS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))


def refused(directory: Path, text: str) -> str:
    """The message for a recipe that holds this text too."""
    file = directory / "r.yaml"
    file.write_text(NEEDED + text + "\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        recipes.load(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert len(message) < 600 and "\n" not in message
    return message


@pytest.mark.parametrize(
    "text",
    [
        *("seed: 2024-99-99", "seed: !!int abc", "seed: !!float abc", "seed: !!bool abc", "seed: !!timestamp abc"),
        *("seed: 0x_", "seed: 0b_", "seed: " + "1" * 5000),
    ],
)
def test_a_value_that_yaml_cannot_make(tmp_path: Path, text: str) -> None:
    assert "a value is not of the type that it looks like" in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a0: &a0 [x, x]\n" + LEVELS + "seed: *a8", "its aliases stand for over"),
        ("a0: &a0 [x, x]\n" + LEVELS + "prompt: *a8", "its aliases stand for over"),
        ("finetune: {lr: " + "1" * 400 + "}", "a number of hundreds of digits"),
        ("prompt: " + "y" * 100_000, "prompt: expected settings, found 'yyy"),
        ("seed: " + "y" * 100_000, "seed: expected int, found 'yyy"),
        ("device: " + "[" + "x, " * 50_000 + "]", "device: expected str, found ['x', 'x'"),
        ("prompt: {style: " + "y" * 100_000 + "}", "is not one of chat, base"),
        ("".join(f"k{i}: 1\n" for i in range(5000)), "unknown key 'k0'"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_too_much_is_named_in_short(tmp_path: Path, text: str, problem: str) -> None:
    if "k4999" in text:
        with pytest.raises(RecipeError, match="unknown key 'k0'"):
            recipes.load(_written(tmp_path, text))
        return
    assert problem in refused(tmp_path, text)


def _written(directory: Path, text: str) -> Path:
    file = directory / "r.yaml"
    file.write_text(NEEDED + text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 10000000000000", "seed: must be at most 1,000,000,000,000, found 1e+13"),
        ("seed: -1", "seed: must be at least 0"),
        ("export: {formats: [mixed], budget_gb: 1e308}", "export.budget_gb: must be at most"),
        ("finetune: {batch_size: 100000000000000000000}", "finetune.batch_size: must be at most"),
        ("sweep: {remove: [10000000000000]}", "sweep.remove: each must be at most"),
        ("sweep: {budget_ratios: [.nan]}", "sweep.budget_ratios: each must be above 0"),
    ],
)
def test_numbers_that_overflow_what_is_computed_with_them(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refused(tmp_path, text)


@pytest.mark.parametrize(
    "text", ['out: "a\\0b"', 'data: {path: "a\\0b"}', 'revision: "a\\0b"', 'prompt: {system: "\\0"}']
)
def test_nul_is_in_no_path_and_no_text(tmp_path: Path, text: str) -> None:
    if text.startswith("data"):
        (tmp_path / "r.yaml").write_text("model: m\n" + text)
        with pytest.raises(RecipeError, match=r"data.path: .* holds NUL"):
            recipes.load(tmp_path / "r.yaml")
    else:
        assert "holds NUL" in refused(tmp_path, text)


@pytest.mark.parametrize(
    "name", ["{source:>2000000000}", "{source.__class__}", "{target!r}", "{0}", "{}", "{x}", "{source", "{{source}}"]
)
def test_a_name_has_languages_to_fill_in_and_nothing_else(tmp_path: Path, name: str) -> None:
    assert "may use {source} and {target} only" in refused(tmp_path, f"name: '{name}'")


def test_a_name_is_one_that_a_file_system_takes(tmp_path: Path) -> None:
    assert "a plain directory name of at most 200 bytes" in refused(tmp_path, "name: " + "x" * 256)
    assert "at most 200 bytes" in refused(tmp_path, "name: " + "ü" * 200)
    recipe = recipes.load(
        _written(tmp_path, "name: 'a {source} to {target}, {source}'\nsource: German\ntarget: zh-CN\n")
    )
    assert recipe.name == "a de to zh-cn, de"


@pytest.mark.parametrize("word", ["seed=2024-99-99", "seed=!!bool abc", "seed=[", "seed=" + "1" * 5000])
def test_overrides_are_values_of_yaml_too(tmp_path: Path, word: str) -> None:
    with pytest.raises(RecipeError, match=r"seed: .* is not a YAML value") as caught:
        recipes.load(_written(tmp_path, ""), [word])
    assert len(str(caught.value)) < 600
