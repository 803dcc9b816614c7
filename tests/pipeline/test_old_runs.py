"""A run directory of the version before schema numbers is done, and its unfinished stages go on.

tests/fixtures/make_run_of_schema_1.py says how it was made.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sordino.config import migrations, records
from sordino.config.recipe import load
from sordino.pipeline import artifact, lineage, runner
from tests.stages.runs import answer, jsonl, stage_json

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_schema_1.tar.xz"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its manifests name the corpus by /proc/self/cwd")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's directory, beside its recipe, model and corpus in the working directory."""
    with tarfile.open(OLD) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return Path("runs/old")


def rewrite(file: Path, **changes: Any) -> None:
    """Replace keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_every_stage_is_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "schema" not in stage_json(run / "20-teacher")
    assert "quantise" in stage_json(run / "61-adapter")["section"]
    plan = {line["stage"]: line["why"] for line in answer(capsys, "plan", "recipe.yaml")["plan"]}
    assert list(plan) == [
        "prepare", "finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge", "export", "translate",
        "evaluate", "report",
    ]  # fmt: skip
    assert set(plan.values()) == {None}
    assert answer(capsys, "run", "recipe.yaml")["ran"] == []
    assert answer(capsys, "check", "recipe.yaml")["problems"] == []


@pytest.mark.parametrize(
    ("directory", "path"),
    [
        ("20-teacher", ["max_grad_norm"]),
        ("20-teacher", ["attention"]),
        ("10-data", ["extra"]),
        ("10-data", ["splits", "by"]),
        ("30-ranking", ["protect_first"]),
        ("30-ranking", ["prompt", "example"]),
        ("50-pseudo", ["filter", "min_comet"]),
        ("60-student", ["mix", "oversample"]),
        ("70-export", ["sensitivity"]),
    ],
)
def test_a_setting_that_a_record_lacks_is_its_default(run: Path, directory: str, path: list[str]) -> None:
    """As if the setting had been added since: the stage stays done, unless the recipe sets it."""
    section = stage_json(run / directory)["section"]
    holder = section
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    rewrite(run / directory / "stage.json", section=section)
    assert {line.why for line in runner.plan(load("recipe.yaml"))} == {None}


def test_a_setting_that_a_record_lacks_and_the_recipe_sets(run: Path) -> None:
    section = stage_json(run / "30-ranking")["section"]
    del section["protect_first"]
    rewrite(run / "30-ranking" / "stage.json", section=section)
    plan = {line.stage: line.why for line in runner.plan(load("recipe.yaml", ["rank.protect_first=2"]))}
    assert plan["rank"] == "settings changed: protect_first"
    assert plan["pseudolabel"] is None


def test_renamed_settings_still_count(run: Path) -> None:
    plan = {line.stage: line.why for line in runner.plan(load("recipe.yaml", ["qlora.quantize=none"]))}
    assert plan["qlora"] == "settings changed: quantize"
    assert plan["distil"] is None


def test_a_killed_ranking_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = artifact.partial_of(run / "30-ranking") / "trials.jsonl"
    first = [row | {"hypotheses": ["kept", "kept"]} for row in jsonl(trials)]
    trials.write_text("".join(json.dumps(row) + "\n" for row in first))
    assert answer(capsys, "rank", "recipe.yaml", "rank.remove=3")["ran"] is True
    rows = jsonl(run / "30-ranking" / "trials.jsonl")
    assert len(first) == 2
    assert rows[:2] == first
    assert len(rows) == 1 + 3 + 2 + 1
    stage = stage_json(run / "30-ranking")
    assert (stage["schema"], stage["section"]["remove"]) == (migrations.schema(), 3)


def test_a_killed_adapter_goes_on_though_a_setting_was_renamed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    partial = artifact.partial_of(run / "61-adapter")
    assert "quantise" in json.loads((partial / artifact.REQUEST_FILE).read_text())["section"]
    (state,) = partial.glob(".state/train/step-*/state.json")
    log = json.loads(state.read_text())["log"]
    log[0]["loss"] = 123.0  # a mark that only a resumed training has
    rewrite(state, log=log)
    later = [f"{stage}=" for stage in ("merge", "export", "translate", "evaluate", "report")]
    result = answer(capsys, "run", "recipe.yaml", "qlora.max_steps=4", *later)
    assert result["ran"] == ["qlora"]
    rows = jsonl(run / "61-adapter" / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == 123.0
    assert stage_json(run / "61-adapter")["section"]["quantize"] == "nf4"


def test_an_unfinished_stage_that_lacks_a_setting_goes_on(run: Path) -> None:
    request = artifact.partial_of(run / "30-ranking") / artifact.REQUEST_FILE
    old = json.loads(request.read_text())
    now = json.loads(json.dumps(old))
    del old["section"]["protect_last"], old["section"]["prompt"]["style"]
    request.write_text(json.dumps(old))
    parents = [artifact.Parent(**parent) for parent in old["parents"]]
    why = artifact.why_not_resumed(run / "30-ranking", now["section"], parents, (), "rank")
    assert why is None
    now["section"]["protect_last"] = 2
    why = artifact.why_not_resumed(run / "30-ranking", now["section"], parents, (), "rank")
    assert why == "was started with other settings: protect_last"


def test_an_old_run_gets_todays_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "90-report")
    assert answer(capsys, "report", "recipe.yaml")["ran"] is True
    page = (run / "90-report" / "report.html").read_text(encoding="utf-8")
    for text in (
        "What to try next",
        "Bytes by part",
        "<strong>QLoRA adapter</strong>",
        "Time and memory",
        "Clip by clip",
    ):
        assert text in page
    assert "data:audio/mpeg;base64," in page
    assert load(run / "90-report" / "recipe.yaml") == load("recipe.yaml")


def test_an_old_adapter_loads_and_has_a_lineage(run: Path) -> None:
    from sordino.models.loading import open_model

    speech = open_model(str(run / "61-adapter"), device="cpu")
    kinds = {type(parameter).__name__ for parameter in speech.model.parameters()}
    assert "Params4bit" in kinds  # by the setting that is now called quantize
    stages = lineage.read(run / "70-export" / "nf4").stages
    assert stages[-1]["stage"] == "export"
    assert records.read_stage(run / "61-adapter") in stages
