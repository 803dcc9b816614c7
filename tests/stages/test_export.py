"""w4a16-gptq in a run: rounded for the run's own clips, resumed to the same bytes, translated with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sordino.cli import main
from sordino.config import recipe
from sordino.pipeline.forecast import config_of, forecast
from sordino.quantization import gptq
from tests.stages.runs import Made, recipe_file

FORMATS = ["w4a16", "w4a16-gptq"]
ONLY = {"translate": {"systems": FORMATS}, "evaluate": None, "report": None}


@pytest.fixture
def again(made: Made, tmp_path: Path) -> Path:
    """A copy of the finished run that is to be exported in other formats; its recipe's file."""
    changes = {"export": {"formats": FORMATS, "calibration": 5}, **ONLY}
    file = recipe_file(tmp_path, made.model, made.corpus, changes)
    shutil.copytree(made.finished, tmp_path / "runs" / "run")
    return file


def test_an_interrupted_gptq_goes_on_to_the_same_bytes(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = again.parent / "runs" / "run" / "70-export"
    calls: list[int] = []
    plain = gptq.round_columns

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if limit and len(calls) > limit:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(gptq, "round_columns", counted)
    limit = 17  # in the third of four layers, of seven weights each
    assert main(["run", str(again), "--yes"]) == 130
    (state,) = (out.parent / "70-export.partial" / ".state").glob("w4a16-gptq-of-*")
    assert len(list(state.iterdir())) == 14
    limit = 0
    assert main(["run", str(again), "--yes"]) == 0
    assert len(calls) == 18 + 14  # finished layers are not rounded again
    bytes_of = {name: (out / name / "model.safetensors").read_bytes() for name in FORMATS}
    assert len(bytes_of["w4a16"]) == len(bytes_of["w4a16-gptq"])
    assert bytes_of["w4a16"] != bytes_of["w4a16-gptq"]
    shutil.rmtree(out)
    assert main(["run", str(again), "--yes"]) == 0
    assert len(calls) == 18 + 14 + 28
    assert {name: (out / name / "model.safetensors").read_bytes() for name in FORMATS} == bytes_of

    stage = json.loads((out / "stage.json").read_text())
    assert stage["parents"][-1]["path"] == "50-pseudo"
    for name in FORMATS:
        rows = (again.parent / "runs" / "run" / "80-outputs" / name / "test.jsonl").read_text().splitlines()
        assert len(rows) == 4
    loaded = recipe.load(again)
    found = forecast(loaded, config_of(loaded))["export"]
    weights = sum(map(len, bytes_of.values()))
    assert found.size is not None and found.size == pytest.approx(weights, rel=0.01, abs=200_000)
    assert found.memory and found.use
