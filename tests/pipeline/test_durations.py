"""What a stage will take, from records of what it took: in this run, in others, and not where that says nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sordino.config.recipe import load
from sordino.pipeline import durations, runner
from tests.stages.runs import Made, answer, run

LATER = [
    f"{stage}=" for stage in ("pseudolabel", "qlora", "merge", "trim", "export", "translate", "evaluate", "report")
]


def about(file: Path, *changes: str) -> dict[str, float | None]:
    """Stage -> seconds, of the stages that will run."""
    return {line.stage: line.about for line in runner.plan(load(file, changes)) if line.why is not None}


def rewrite(directory: Path, **changes: Any) -> None:
    """Replace facts of a finished stage's record."""
    file = directory / "stage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """The recipe beside a copy of the finished run, whose stages took known times; its teacher saw two epochs."""
    file = made.copied(tmp_path, {"finetune": {"max_steps": None, "epochs": 2.0}})
    there = tmp_path / "runs/run"
    section = json.loads((there / "20-teacher/stage.json").read_text())["section"]
    rewrite(there / "20-teacher", section=section | {"max_steps": None, "epochs": 2.0}, seconds=100.0)
    for directory, seconds in {"10-data": 1.0, "30-ranking": 40.0, "40-pruned": 2.0, "60-student": 60.0}.items():
        rewrite(there / directory, seconds=seconds)
    return file


def test_a_training_is_as_long_as_its_epochs(copy: Path) -> None:
    assert about(copy) == {}
    assert about(copy, "finetune.epochs=3")["finetune"] == 150
    assert about(copy, "finetune.lr=1e-5")["finetune"] == 100
    assert about(copy, "finetune.batch_size=2")["finetune"] == 100  # as the last time


def test_another_run_says_what_the_same_stage_took(copy: Path) -> None:
    times = about(copy, "name=other")
    assert (times["finetune"], times["rank"], times["prune"], times["distil"]) == (100, 40, 2, 60)
    changed = about(copy, "name=other", "finetune.epochs=1", "rank.remove=1", "seed=3")
    assert (changed["finetune"], changed["rank"], changed["distil"]) == (50, 20, 60)
    assert about(copy, "name=other", "target=zh")["distil"] == 60
    assert about(copy, "name=other", "distil.batch_size=2")["distil"] is None
    assert about(copy, "name=other", "rank.clips=2")["rank"] is None


def test_the_latest_of_several_runs_counts(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "runs/run", tmp_path / "runs/later")
    rewrite(tmp_path / "runs/later/20-teacher", seconds=300.0)
    assert about(copy, "name=other")["finetune"] == 300
    (tmp_path / "runs/later/20-teacher/stage.json").write_text("{")  # another run's damage is not this one's
    assert about(copy, "name=other")["finetune"] == 100


@pytest.mark.parametrize("change", ["model", "data", "device"])
def test_a_run_of_something_else_says_nothing(copy: Path, made: Made, tmp_path: Path, change: str) -> None:
    recipe = load(copy, ["name=other"])
    stage = runner.by_name("rank")
    settings = stage.settings(recipe)
    assert settings and durations.expected(recipe, stage, settings) == 40
    if change == "device":
        rewrite(tmp_path / "runs/run/30-ranking", device="cuda:0")
    else:
        key, path = ("model", made.model) if change == "model" else ("data.path", made.corpus)
        shutil.copytree(path, tmp_path / "elsewhere")
        recipe = load(copy, ["name=other", f"{key}={tmp_path / 'elsewhere'}"])
    assert durations.expected(recipe, stage, settings) is None


def test_the_plan_adds_it_up(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("name=other", "rank.clips=2", "distil.mix.pseudo=false", *LATER)
    lines = {line["stage"]: line["about"] for line in answer(capsys, "plan", copy, *changes)["plan"]}
    assert (lines["finetune"], lines["rank"], lines["prune"]) == (100, None, 2)
    run("plan", copy, *changes)
    out = " ".join(capsys.readouterr().out.split())
    assert "~1.7 min" in out and "to run: ~1.7 min" in out
    assert "2 stages for which nothing comparable was measured" in out
