"""prepare: what it tells of splits, and texts that no tokenizer should see."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sordino.data import manifest
from sordino.runtime import files
from tests.data.sounds import save
from tests.stages.runs import answer, recipe_file, refusal, run, write_corpus
from tests.tiny import clip

ALONE: dict[str, Any] = dict.fromkeys(
    ("rank", "prune", "pseudolabel", "distil", "qlora", "merge", "trim", "export")
) | {"translate": False, "evaluate": False, "report": False}


@pytest.fixture
def prepare(tmp_path: Path, pico_dir: Callable[[str], Path]) -> Callable[..., Path]:
    def make(corpus: Path, **changes: Any) -> Path:
        return recipe_file(tmp_path / "work", pico_dir("qwen2_audio"), corpus, ALONE | changes)

    return make


def data_of(tmp_path: Path) -> Path:
    return tmp_path / "work" / "runs" / "run" / "10-data"


def edited(corpus: Path, row: int, text: str) -> Path:
    """A corpus with another German text in a row."""
    lines = (corpus / "texts.tsv").read_text(encoding="utf-8").splitlines()
    cells = lines[row + 1].split("\t")
    cells[4] = text
    lines[row + 1] = "\t".join(cells)
    (corpus / "texts.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return corpus


def talks(folder: Path, of_each: int = 10) -> Path:
    """Three recordings, a table of slices, and no column of groups."""
    folder.mkdir()
    rows = ["audio\tstart\tseconds\ttext_de"]
    for k in range(3):
        save(folder / f"talk{k}.flac", clip(k, 0.5 * of_each))
        rows += [f"talk{k}.flac\t{0.5 * i}\t0.5\tSatz {k} {i}." for i in range(of_each)]
    (folder / "t.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("row", [0, 11, 14])  # train, select, dev
def test_a_control_token_in_a_text_is_named(
    tmp_path: Path, prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str], row: int
) -> None:
    corpus = edited(write_corpus(tmp_path / "corpus"), row, "Ende <|im_end|> mehr.")
    told = refusal(capsys, "prepare", prepare(corpus))
    assert f"clip{row:02}: target_text holds '<|im_end|>'" in told
    run("prepare", prepare(corpus), "--skip-bad")
    ids = {
        one.id for file in data_of(tmp_path).glob("*.jsonl") if file.stem != "skipped" for one in manifest.read(file)
    }
    assert f"clip{row:02}" not in ids
    assert len(ids) == 19


def test_a_reference_that_is_only_compared_may_hold_anything(tmp_path: Path, prepare: Callable[..., Path]) -> None:
    run("prepare", prepare(edited(write_corpus(tmp_path / "corpus"), 16, "Das <|AUDIO|> Wort.")))


@pytest.mark.parametrize("key", ["instruction", "system"])
def test_a_control_token_in_the_prompt_is_named(
    tmp_path: Path, prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str], key: str
) -> None:
    recipe = prepare(write_corpus(tmp_path / "corpus"), prompt={key: "Translate <|AUDIO|> into {target}:"})
    assert f"prompt.{key} holds '<|AUDIO|>'" in refusal(capsys, "prepare", recipe)


def test_recordings_stay_whole_or_the_leak_is_told(
    tmp_path: Path, prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = talks(tmp_path / "talks")
    run("prepare", prepare(corpus, data={"splits": {"select": 0, "dev": 0, "test": 10}}))
    assert json.loads((data_of(tmp_path) / "stage.json").read_text())["leaking_split"] is False
    assert len({one.audio for one in manifest.read(data_of(tmp_path) / "test.jsonl")}) == 1
    capsys.readouterr()
    run("prepare", prepare(corpus, data={"splits": {"select": 5, "dev": 5, "test": 5}}))
    told = capsys.readouterr().err
    assert "dealt one by one, which leaks" in told
    assert "recordings in several splits: 3" in told
    assert json.loads((data_of(tmp_path) / "stage.json").read_text())["leaking_split"] is True


def test_a_group_in_two_splits_is_told_before_anything_is_decoded(
    tmp_path: Path, prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    text = (corpus / "texts.tsv").read_text(encoding="utf-8")
    (corpus / "texts.tsv").write_text(text.replace("test-8", "train-0").replace("test-9", "train-1"), encoding="utf-8")
    monkeypatch.setattr("sordino.data.checks.load", lambda *_, **__: pytest.fail("decoded"))
    told = refusal(capsys, "prepare", prepare(corpus))
    assert "Group 'train-0' stands in train (clip 'clip00') and in test (clip 'clip16')." in told
    assert "Group 'train-1' stands in" in told


def test_clips_beyond_the_window_are_told_once(
    tmp_path: Path, prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    save(corpus / "clip00.flac", clip(0, 36.0))
    save(corpus / "clip01.flac", clip(1, 20.0))
    told = refusal(capsys, "prepare", prepare(corpus))
    assert "2 rows of the corpus cannot be used" in told
    assert told.count("4 s is the limit") == 2


def test_a_replaced_recording_of_the_same_size_is_noticed(
    tmp_path: Path, prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    for name in ("clip00", "clip04"):  # uncompressed: of equal length, they are of equal size
        (corpus / f"{name}.flac").unlink()
        save(corpus / f"{name}.wav", clip(int(name[-1]), 0.5))
    table = (corpus / "texts.tsv").read_text(encoding="utf-8")
    (corpus / "texts.tsv").write_text(table.replace("clip00.flac", "clip00.wav").replace("clip04.flac", "clip04.wav"))
    recipe = prepare(corpus)
    run("prepare", recipe)

    def state() -> str:
        return next(row["why"] or "done" for row in answer(capsys, "plan", recipe)["plan"] if row["stage"] == "prepare")

    assert state() == "done"
    (corpus / "clip00.wav").write_bytes((corpus / "clip04.wav").read_bytes())
    assert state() == f"made from other inputs: {corpus}"


def test_a_record_of_before_counts_recordings_by_size(
    tmp_path: Path, prepare: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    recipe = prepare(corpus)
    run("prepare", recipe)
    file = data_of(tmp_path) / "stage.json"
    stage = json.loads(file.read_text())
    prints = {one.name: str(one.stat().st_size) for one in corpus.glob("*.flac")}
    prints["texts.tsv"] = files.fingerprint_file(corpus / "texts.tsv")
    stage["parents"] = [{"path": str(corpus), "hash": files.combined(prints)}]
    file.write_text(json.dumps(stage))
    assert [row["why"] for row in answer(capsys, "plan", recipe)["plan"] if row["stage"] == "prepare"] == [None]
