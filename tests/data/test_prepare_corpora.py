"""The prepare stage on published corpora: unpacked audio is part of the artefact, and extra clips are for training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sordino.cli import main
from sordino.data import corpora, manifest
from sordino.data.audio import load_clip
from sordino.data.corpora.acl6060 import paper_test
from sordino.errors import RecipeError

from .layouts import acl_rows, acl_shard, covost

NUMBERS = [1, 2, 94, 95, 108, 109, 200, 201, 260, 261, 370, 371]  # of ACL 60/60 dev: two or four of each talk


def prepare(folder: Path, model: Path, *overrides: str) -> int:
    recipe = {"name": "run", "out": str(folder / "runs"), "model": str(model), "device": "cpu"}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return main(["prepare", str(file), *overrides])


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    acl_shard(tmp_path / "acl" / "data" / "dev-00000-of-00001.parquet", acl_rows(tmp_path, NUMBERS))
    covost(tmp_path / "covost2")
    return [
        "data.corpus=acl6060",
        f"data.path={tmp_path / 'acl'}",
        "data.splits={select: 2, dev: 0, test: 4}",
        "data.extra.corpus=covost2",
        f"data.extra.path={tmp_path / 'covost2'}",
        "data.extra.rows=100000",
        "data.extra.max_seconds=1.45",
    ]


def test_the_run_holds_the_audio(tmp_path: Path, overrides: list[str], pico_dir: Callable[[str], Path]) -> None:
    assert prepare(tmp_path, pico_dir("qwen2_audio"), *overrides) == 0
    data = tmp_path / "runs" / "run" / "10-data"
    parts = {name: manifest.read(data / f"{name}.jsonl") for name in ("train", "select", "test", "extra")}
    assert sorted(one.id for name in ("train", "select", "test") for one in parts[name]) == sorted(
        f"dev/sent_{number}" for number in NUMBERS
    )
    groups = [{one.group for one in parts[name]} for name in ("train", "select", "test")]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 5
    for name in ("train", "select", "test"):
        for one in parts[name]:
            assert Path(one.audio).parent == data / "audio"
            assert len(load_clip(one)) / 16_000 == one.seconds
    assert [one.id for one in parts["extra"]] == ["common_voice_en_1"]  # the others: 1.5 s, or of dev and test
    stage = json.loads((data / "stage.json").read_text())
    assert stage["outputs"].keys() >= {"audio/dev-sent_1.wav", "extra.jsonl"}
    assert not list((tmp_path / "acl").rglob("*.wav"))


def test_the_paper_s_split(tmp_path: Path, overrides: list[str], pico_dir: Callable[[str], Path]) -> None:
    paper = [*overrides[:2], "data.split=paper", "data.splits={select: 2, dev: 0, test: 4, by: segment}"]
    assert prepare(tmp_path, pico_dir("qwen2_audio"), *paper) == 0
    data = tmp_path / "runs" / "run" / "10-data"
    test = {one.id for one in manifest.read(data / "test.jsonl")}
    assert test == {f"dev/sent_{number}" for number in NUMBERS} & paper_test()
    assert "dev/sent_95" in test
    assert json.loads((data / "stage.json").read_text())["leaking_split"] is True
    assert prepare(tmp_path, pico_dir("qwen2_audio"), *paper[:3]) == 2


def test_contradictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        "data.path=x", "data.split=paper", "data.extra.path=x", "data.extra.split=paper", "data.max_ratio=0.5",
        "data.rows=0", "data.extra.min_seconds=3", "data.extra.max_seconds=2",
    ]  # fmt: skip
    assert prepare(tmp_path, tmp_path, *wrong) == 2
    told = capsys.readouterr().err
    for key in ("data.split", "data.extra.split", "data.max_ratio", "data.rows", "data.extra.min_seconds"):
        assert f"{key}:" in told


def test_settings_that_a_corpus_lacks(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'folder' has no setting 'subsets'.*acl6060, covost2, mustc"):
        corpora.load("folder", tmp_path, "en", "de", subsets=("dev",))
    with pytest.raises(RecipeError, match=r"'covost2' has no setting 'split'.*have it: acl6060"):
        corpora.load("covost2", tmp_path, "en", "de", split="paper")
