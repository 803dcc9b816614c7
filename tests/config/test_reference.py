"""The reference is made from the schema: as values, in docs/settings.md, in `--help` and by `sordino settings`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sordino import cli
from sordino.config import reference
from sordino.config.parsing import section as parse_section
from sordino.config.schema import Recipe
from sordino.errors import RecipeError
from sordino.pipeline import runner
from tests.stages.runs import answer, refusal

Capsys = pytest.CaptureFixture[str]
PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def by_key() -> dict[str, reference.Setting]:
    return {row.key: row for row in reference.settings()}


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "sordino.config.reference"], capture_output=True, text=True, check=True
    )
    assert PAGE.read_text(encoding="utf-8") == made.stdout, "run: python -m sordino.config.reference > docs/settings.md"


def test_a_setting_has_type_default_limits_and_meaning() -> None:
    rows = by_key()
    assert rows["finetune.epochs"] == reference.Setting(
        "finetune", "finetune.epochs", "float", 3, "above 0", "passes over the training clips"
    )
    assert (rows["distil.epochs"].default, rows["finetune.weight_decay"].default) == (4, 0.001)
    assert rows["qlora.dropout"].limits == "at least 0 and below 1"
    assert rows["rank.clips"].type == "int or null"
    assert rows["rank.search"].type == "one of exact, racing"
    assert rows["trim.splits"].type == "list of train, extra, select, dev"
    assert rows["data.splits.select"].stage == "prepare"
    assert rows["data.extra"].default is None
    assert rows["data.extra.rows"].limits == "at least 1"
    assert rows["pseudolabel.filter.min_chrf"].limits == "at least 0 and at most 100"
    assert rows["seed"].stage == "recipe"
    assert rows["prompt.style"].stage == "prompt"


def test_every_setting_is_there_once_and_no_other() -> None:
    keys = [row.key for row in reference.settings()]
    assert len(keys) == len(set(keys))
    for key in keys:
        problems: list[str] = []
        raw: Any = yaml.safe_load("null")
        for part in reversed(key.split(".")):
            raw = {part: raw}
        parse_section(Recipe, raw, "", problems)
        assert not any("unknown key" in problem for problem in problems), problems


def test_every_default_can_be_written_as_it_is_shown() -> None:
    """What the reference shows, read as YAML, is the default."""
    for row in reference.settings():
        if row.type == "section":
            continue
        raw: Any = yaml.safe_load(reference.as_yaml(row.default) if "{" not in str(row.default) else repr(row.default))
        for part in reversed(row.key.split(".")):
            raw = {part: raw}
        problems: list[str] = []
        value: Any = parse_section(Recipe, raw, "", problems)
        for part in row.key.split("."):
            value = getattr(value, part)
        assert (value, problems) == (row.default, []), row.key


def test_stages_are_named_as_commands_or_as_sections() -> None:
    assert reference.settings("prepare") == reference.settings("data")
    assert {row.stage for row in reference.settings("rank")} == {"rank"}
    assert reference.settings("merge") == ()
    with pytest.raises(RecipeError, match=r"there is no stage 'rnk'\. Did you mean 'rank'\?"):
        reference.settings("rnk")
    with pytest.raises(RecipeError, match=r"There are: recipe, resources, prompt, prepare, finetune"):
        reference.settings("zzz")


def test_the_command(capsys: Capsys) -> None:
    rows = answer(capsys, "settings", "qlora")["settings"]
    assert rows[0] == {
        "stage": "qlora",
        "key": "qlora.epochs",
        "type": "float",
        "default": 4,
        "limits": "above 0",
        "meaning": "passes over the training clips",
    }
    assert {row["stage"] for row in answer(capsys, "settings")["settings"]} >= set(runner.STAGES) - {"merge"}
    assert cli.main(["settings", "report"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("report: One offline page of all results.\n  report.samples=8 ")
    assert "clips shown side by side (int; at least 0)" in out
    assert refusal(capsys, "settings", "prun") == "sordino: settings: there is no stage 'prun'. Did you mean 'prune'?\n"


@pytest.mark.parametrize("stage", runner.STAGES)
def test_a_stage_s_help_lists_its_settings(stage: str, capsys: Capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["translate-test" if stage == "translate" else stage, "--help"])  # translate is for files
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for row in reference.settings(stage):
        assert f"  {row.key}={reference.as_yaml(row.default)}" in out
    assert ("This stage has no settings." in out) == (stage == "merge")


def test_text_keeps_to_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [row.key for row in reference.settings()]
    lines = reference.text().splitlines()
    long = [line for line in lines if len(line) > 80 and not any(name in line for name in names)]
    assert all(line.split(":")[0] in reference.sections() for line in long)  # headings are whole


def test_config_imports_nothing_heavy() -> None:
    heavy = "torch", "transformers", "numpy", "soundfile", "sacrebleu"
    names = ", ".join(f"sordino.config.{file.stem}" for file in Path(reference.__file__).parent.glob("[a-z]*.py"))
    code = f"import sys, {names}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
