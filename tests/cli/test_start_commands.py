"""The first minute: what `try` and `init` print, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.cli import start_commands
from tests.stages.runs import Made, answer, refusal, run, write_corpus

Capsys = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


def test_try_shows_speech_and_says_what_to_do_next(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "demo" / "corpus", ("test",) * 7)
    (tmp_path / "demo" / "base").symlink_to(made.model)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    run("try")
    out = capsys.readouterr().out
    assert out.count("  spoken ") == out.count("  translated ") == out.count("  right ") == start_commands.SAMPLES
    assert "spoken      The rain is train." in out
    assert "right       Der rain ist train." in out
    assert "make demo" in out
    assert "sordino init FOLDER" in out
    assert len(answer(capsys, "try")["clips"]) == start_commands.SAMPLES


def test_try_outside_a_checkout(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(capsys, "try")
    assert "there is no demo/base here" in message
    assert "sordino translate MODEL AUDIO..." in message


def test_init_says_what_it_found_and_what_comes_next(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "data" / "mine")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    run("init", "--to", "German", "--model", made.model)  # the only folder that holds a corpus
    out = capsys.readouterr().out
    assert out.startswith("data/mine/texts.tsv: 20 clips, 0.00 hours, English to German\n")
    assert "splits: 10 train, 4 select, 2 dev, 4 test" in out
    assert "  - training clips: 10 are few" in out
    assert out.endswith("wrote mine.yaml. Next:\n  sordino plan mine.yaml\n  sordino run mine.yaml\n")
    assert answer(capsys, "plan", "mine.yaml")["run"] == "runs/mine-en-de"


def test_init_replaces_nothing_and_stays_out_of_the_corpus(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_corpus(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("mine")
    words = ("init", "mine", "--to", "de", "--model", str(made.model))
    assert "mine.yaml exists. Name another file: --out FILE." in refusal(capsys, *words)
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    message = refusal(capsys, *words, "--out", folder / "first.yaml")
    assert "every change of the recipe would be a change of the corpus" in message
    monkeypatch.chdir(folder)
    assert "Run it in the directory above: sordino init mine" in refusal(capsys, "init", "--to", "de")
    assert not list(folder.glob("*.yaml"))


def test_init_where_there_is_nothing_or_too_much(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(capsys, "init")
    assert "no folder here holds audio files and a table" in message
    assert "A table (.tsv, .csv, .jsonl) has a row for each clip" in message
    for name in ("one", "two"):
        write_corpus(tmp_path / "data" / name)
    assert "several folders hold audio and a table: data/one, data/two. Name one." in refusal(capsys, "init")
    assert "has translations into German, Chinese. Say which: --to de" in refusal(capsys, "init", "data/one")
    assert "is not a directory" in refusal(capsys, "init", "gone")
