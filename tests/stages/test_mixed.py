"""Exports under a budget of bytes: what is predicted is written, what is measured is written, and what cannot be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sordino.cli import main
from sordino.measure import size
from sordino.models import loading
from sordino.quantization import sensitivity
from tests.stages.runs import Made, answer, contents, jsonl, refusal, run, stage_json

STUDENT = ["10-data", "20-teacher", "30-ranking", "40-pruned", "50-pseudo", "60-student"]
ALONE = dict.fromkeys(("qlora", "merge", "trim", "translate", "evaluate", "report"))
FEW = {"clips": 2}


def budgeted(made: Made, directory: Path, changes: dict[str, Any] | None = None, **export: Any) -> Path:
    """A recipe beside the finished student that exports in format mixed."""
    export = {"formats": ["mixed"], "sensitivity": FEW} | export
    return made.copied(directory, ALONE | (changes or {}) | {"export": export}, STUDENT)


def audit(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "runs/run/70-export/mixed/audit.json").read_text())
    return found


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.95])
def test_the_bytes_are_those_planned(
    made: Made, tmp_path: Path, ratio: float, capsys: pytest.CaptureFixture[str]
) -> None:
    file = budgeted(made, tmp_path, budget_ratio=ratio)
    lines = {line["stage"]: line for line in answer(capsys, "plan", file)["plan"]}
    run("export", file)
    found = audit(tmp_path)
    mixed = found["mixed"]
    weights = found["size"]["weights_bytes"]
    assert mixed["budget_bytes"] == int(ratio * size.measure(tmp_path / "runs/run/20-teacher").weights_bytes)
    assert weights <= mixed["budget_bytes"]
    assert weights == pytest.approx(mixed["predicted_bytes"], rel=0.01)
    planned = lines["export"]["forecast"]["size"] - sum(
        f.stat().st_size for f in made.model.iterdir() if f.suffix != ".safetensors"
    )
    assert weights == pytest.approx(planned, rel=0.01)
    assert (set(mixed["bits"].values()) == {16}) == (ratio == 0.95)  # above the student's size nothing is rounded
    assert mixed["dropped"] == []
    costs = {(c["part"], c["bits"]): c["cost"] for c in mixed["costs"]}
    chosen = sum(costs[part, bits] for part, bits in mixed["bits"].items() if bits < 16)
    assert mixed["predicted_cost"] == pytest.approx(chosen)
    assert [p["path"] for p in stage_json(tmp_path / "runs/run/70-export")["parents"]] == [
        "60-student",
        "10-data",
        "30-ranking",
    ]


def test_what_was_measured_is_what_is_read_back(made: Made, tmp_path: Path) -> None:
    """The weights that stock loading gives are those that sensitivity computed with, and it translates."""
    changes: dict[str, Any] = {"translate": {"systems": ["mixed"], "max_new_tokens": 3}}
    changes |= {"evaluate": {"metrics": ["chrf"], "bootstrap": 0}, "report": {}}
    run("run", budgeted(made, tmp_path, changes, budget_ratio=0.3))
    there = tmp_path / "runs/run"
    speech = loading.load_checkpoint(str(there / "60-student"), device="cpu", dtype="float32")
    loaded = loading.load_checkpoint(str(there / "70-export/mixed"), device="cpu", dtype="float32")
    bits = audit(tmp_path)["mixed"]["bits"]
    assert len(set(bits.values())) > 1
    read_back = sensitivity.weights(loaded)
    for part, weights in sensitivity.weights(speech).items():
        if bits[part] < 16:
            with sensitivity.rounded(weights, bits[part]):
                assert all(torch.equal(a, b) for a, b in zip(weights, read_back[part], strict=True)), part
        else:
            assert all(torch.equal(a, b) for a, b in zip(weights, read_back[part], strict=True)), part
    assert len(jsonl(there / "80-outputs/mixed/test.jsonl")) == 4
    page = (there / "90-report/report.html").read_text(encoding="utf-8")
    assert "Bits of format mixed" in page and re.search(rf">head</th>\s*<td>{bits['head']}</td>", page)


def test_ranked_layers_go_where_bytes_are_short(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest budget needs every drop; what is written lacks the layers that the ranking names next."""
    changes = {"distil": None, "pseudolabel": None, "prune": {"remove": 1}}
    file = budgeted(made, tmp_path, changes, of="pruned", budget_gb=1e-6)
    shutil.rmtree(tmp_path / "runs/run/60-student")
    run("prune", file)
    capsys.readouterr()
    message = refusal(capsys, "export", file)
    assert "a budget of 1,000 bytes is too small" in message
    least = int(re.findall(r"([0-9,]+) is the smallest", message)[0].replace(",", ""))
    file = budgeted_again(file, {"budget_gb": least / 1e9})
    run("export", file)
    found = audit(tmp_path)["mixed"]
    order = json.loads((tmp_path / "runs/run/30-ranking/ranking.json").read_text())["order"]
    first, second = (int(layer.removeprefix("decoder.")) for layer in order)
    assert found["dropped"] == [f"decoder.{second - (second > first)}"]
    config = json.loads((tmp_path / "runs/run/70-export/mixed/config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 4
    layers = [int(found["dropped"][0].removeprefix("decoder."))]
    assert not {f"decoder.{i}.mlp" for i in layers} & set(found["bits"])
    assert least * 0.98 < audit(tmp_path)["size"]["weights_bytes"] <= least
    assert not list((tmp_path / "runs/run/70-export").glob(".*"))
    kept = budgeted_again(file, {"budget_gb": least / 1e9, "sensitivity": FEW | {"drop": False}})
    assert "is too small" in refusal(capsys, "export", kept, "--yes")


def budgeted_again(file: Path, export: dict[str, Any]) -> Path:
    raw = yaml.safe_load(file.read_text())
    raw["export"] |= export
    file.write_text(yaml.safe_dump(raw))
    return file


def test_measuring_goes_on_after_a_kill(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = budgeted(made, tmp_path / "straight", budget_ratio=0.4)
    run("export", straight)
    file = budgeted(made, tmp_path / "killed", budget_ratio=0.4)
    cost = sensitivity.Sensitivity.cost
    asked = []

    def killed(self: Any, change: Any, order: Any = ()) -> Any:
        asked.append(change)
        if len(asked) == 9:
            raise KeyboardInterrupt
        return cost(self, change, order)

    monkeypatch.setattr(sensitivity.Sensitivity, "cost", killed)
    assert main(["export", str(file)]) == 130
    (lines,) = (tmp_path / "killed/runs/run/cache/sensitivity").glob("*.jsonl")
    assert len(jsonl(lines)) == 8
    with lines.open("a") as out:
        out.write('{"part": "decoder.0.ml')  # torn by the kill
    run("export", file)
    assert len(asked) == 9 + len(set(asked[8:])) and len(set(asked)) == len(asked) - 1
    one, other = (contents(tmp_path / name / "runs/run/70-export/mixed") for name in ("straight", "killed"))
    assert one == other
    capsys.readouterr()
    answered = len(asked)
    run("export", budgeted_again(file, {"budget_ratio": 0.35}))  # another budget measures nothing again
    assert len(asked) == answered
