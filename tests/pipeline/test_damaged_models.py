"""A damaged model in a run: refused by the file's name, before anything is written, and fine once it is whole again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.runs import Made, contents, refusal, run

NEEDED = ("10-data", "20-teacher", "30-ranking", "40-pruned", "50-pseudo", "60-student", "61-adapter", "62-merged")


@pytest.mark.parametrize(("stage", "made_from"), [("40-pruned", "20-teacher"), ("70-export", "62-merged")])
def test_a_truncated_shard_is_refused_by_name(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, made_from: str
) -> None:
    before = [name for name in NEEDED if name < stage]
    recipe = made.copied(tmp_path, {"translate": False, "evaluate": False, "report": False}, before)
    there = tmp_path / "runs" / "run"
    weights = there / made_from / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    message = refusal(capsys, "run", recipe)
    assert f"{made_from}/model.safetensors is truncated or damaged" in message.replace("\n", "")
    assert "run its stage again" in message
    assert not (there / stage).exists()
    assert [p for p in there.glob(f"{stage}.partial/**/*") if p.is_file() and not p.name.startswith(".")] == []
    weights.write_bytes(whole)
    run("run", recipe)
    expected = contents(made.finished / stage)
    for name, data in contents(there / stage).items():
        assert data == expected[name] or name == "stage.json", name
