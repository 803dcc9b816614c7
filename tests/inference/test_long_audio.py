"""Talks of any length through the command line: by voice activity, by a list, killed and resumed, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from benchmarks.longform import make_talk
from sordino.cli import main
from sordino.data import voice
from sordino.inference import long_audio
from sordino.pipeline import artifact
from sordino.runtime import files
from tests.stages.runs import Made, answer, jsonl, refusal, run

Capsys = pytest.CaptureFixture[str]
SHORT = ("--to", "de", "--device", "cpu", "--max-new-tokens", "5")


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_talk(tmp_path_factory.mktemp("talk"), 180)


@pytest.fixture(scope="module")
def whole(made: Made, talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Translated without a disturbance; the pico model hears 4 s at once."""
    out = tmp_path_factory.mktemp("out") / "talk"
    run("translate", made.model, talk, "--out", out, *SHORT)
    return out


def written(out: Path) -> list[bytes]:
    assert {p.name for p in out.iterdir()} == {"segments.jsonl", "text.txt", "stage.json"}
    return [(out / name).read_bytes() for name in ("segments.jsonl", "text.txt")]


def test_a_talk_by_voice_activity(made: Made, talk: Path, whole: Path, capsys: Capsys) -> None:
    rows = jsonl(whole / "segments.jsonl")
    assert list(rows[0]) == ["id", "segment", "audio", "start", "seconds", "text", "tokens"]
    assert [row["id"] for row in rows] == [f"talk_{i}" for i in range(len(rows))]
    assert [row["start"] for row in rows] == sorted(row["start"] for row in rows)
    assert len(rows) > 40
    assert max(row["seconds"] for row in rows) <= 4.0
    assert {row["audio"] for row in rows} == {str(talk)}
    assert len({row["text"] for row in rows}) > 10, "a random model, but it does hear"
    lines = (whole / "text.txt").read_text(encoding="utf-8").split("\n")
    assert lines == [long_audio.one_line(row["text"]) for row in rows] + [""]
    stamp = (whole / "stage.json").stat().st_mtime_ns
    found = answer(capsys, "translate", made.model, talk, "--out", whole, *SHORT)  # nothing is left to do
    assert found == {"hypotheses": rows, "out": str(whole), "skipped": []}
    assert (whole / "stage.json").stat().st_mtime_ns == stamp


def test_a_kill_changes_nothing(
    made: Made, talk: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "killed"
    rows = out.with_name("killed.partial") / ".state" / "segments.jsonl"
    write, cut, batches = files.append_jsonl, voice.split, []

    def killed(file: Path, *found: Any) -> None:
        write(file, *found)
        batches.append(len(found))
        if len(batches) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "append_jsonl", killed)
    words = ["translate", str(made.model), str(talk), "--out", str(out), *SHORT]
    assert main(words) == 130
    assert not out.exists()
    kept = rows.read_bytes()
    rows.write_bytes(kept[:-30])  # the kill tore the last line
    monkeypatch.setattr(files, "append_jsonl", lambda file, *found: (batches.append(len(found)), write(file, *found)))
    monkeypatch.setattr(voice, "split", lambda *_, **__: pytest.fail("listened again"))
    run(*words)
    monkeypatch.setattr(voice, "split", cut)
    assert written(out) == written(whole)
    assert batches[2] == 1, "of the torn batch only what was lost is written again"
    assert sum(batches) == len(jsonl(out / "segments.jsonl")) + 1


@pytest.mark.parametrize("torn", [None, "..request.json.77.tmp"])
def test_a_kill_at_the_first_instant_costs_nothing(
    made: Made, talk: Path, whole: Path, tmp_path: Path, torn: str | None
) -> None:
    """The directory is there, and what says whose it is is not."""
    out = tmp_path / "out"
    out.with_name("out.partial").mkdir()
    if torn:
        (out.with_name("out.partial") / torn).write_text("{")
    run("translate", made.model, talk, "--out", out, *SHORT)
    assert written(out) == written(whole)


@pytest.mark.parametrize("out", ["", ".", "..", "/", "a/.."])
def test_a_place_without_a_name_is_refused(
    made: Made, talk: Path, capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(capsys, "translate", made.model, talk, "--out", out, *SHORT)
    assert "is no name of a new directory" in said
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_one_line(made: Made, talk: Path, capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refusal(capsys, "translate", made.model, talk, "--out", tmp_path / "file" / "x", *SHORT)
    assert f"{tmp_path}/file/x.partial: a file is where a directory must be" in said
    said = refusal(capsys, "translate", made.model, talk, "--out", tmp_path / ("x" * 300), *SHORT)
    assert "the name is too long" in said
    (tmp_path / "empty").mkdir()
    run("translate", made.model, talk, "--out", tmp_path / "empty", *SHORT)  # nothing of anyone's is in it
    assert (tmp_path / "empty" / "text.txt").is_file()


def test_a_kill_at_the_last_instant_costs_nothing(
    made: Made, talk: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out.with_name("out.partial"))  # all that was missing is the new name
    (out.with_name("out.partial") / ".state").mkdir()
    monkeypatch.setattr(long_audio, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    run("translate", made.model, talk, "--out", out, *SHORT)
    assert written(out) == written(whole)


def test_a_list_of_segments(made: Made, talk: Path, tmp_path: Path, capsys: Capsys) -> None:
    """Each is encoded as if it were a file; one that is too long is cut by voice, and is still one line."""
    truth = talk.with_suffix(".yaml").read_text().split("- wav:")[1:4]
    long = "talk.flac\n  offset: 12\n  duration: 9\n"
    silent = "quiet.wav\n  offset: 1\n  duration: 1\n"
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(talk, folder / "talk.flac")
    soundfile.write(folder / "quiet.wav", np.zeros(48_000, dtype=np.float32), 16_000)
    (folder / "set.yaml").write_text("".join(f"- wav: {entry.strip()}\n" for entry in [*truth, silent, long]))
    audio = [folder / "talk.flac", folder / "quiet.wav"]
    options = ("--segments", folder / "set.yaml", "--out", tmp_path / "out", *SHORT)
    found = answer(capsys, "translate", made.model, *audio, *options)
    rows = found["hypotheses"]
    assert [row["segment"] for row in rows[:4]] == ["talk_0", "talk_1", "talk_2", "quiet_0"]
    assert {row["segment"] for row in rows[4:]} == {"talk_3"}
    assert len(rows) > 5
    again = answer(capsys, "translate", made.model, *audio, *options[:2], *SHORT)  # kept nowhere
    assert again == found | {"out": None}
    assert found["skipped"] == [{"id": "quiet_0", "problem": rows[3]["problem"]}]
    assert "silent" in rows[3]["problem"]
    lines = (tmp_path / "out" / "text.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 6
    assert lines[3] == ""
    assert lines[4] == " ".join(text for row in rows[4:] if (text := long_audio.one_line(row["text"])))
    for i, row in enumerate(rows[:3]):
        samples, rate = soundfile.read(talk, start=round(row["start"] * 16_000), frames=round(row["seconds"] * 16_000))
        soundfile.write(tmp_path / f"{i}.wav", samples, rate)
        (alone,) = answer(capsys, "translate", made.model, tmp_path / f"{i}.wav", *SHORT)["hypotheses"]
        assert list(alone) == ["id", "audio", "text", "seconds", "tokens"]  # short clips answer as ever
        assert alone["text"] == row["text"]


def test_other_work_is_never_replaced(made: Made, talk: Path, whole: Path, tmp_path: Path, capsys: Capsys) -> None:
    before = written(whole)
    said = refusal(capsys, "translate", made.model, talk, "--out", whole, *SHORT, "--pause", "0.9")
    assert "holds another result (settings changed: pause)" in said
    other = tmp_path / "model"
    shutil.copytree(made.model, other)
    said = refusal(capsys, "translate", other, talk, "--out", whole, *SHORT)
    assert "made from other inputs" in said
    assert written(whole) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    said = refusal(capsys, "translate", made.model, talk, "--out", tmp_path / "mine", *SHORT)
    assert "exists, and is not a result of this command" in said
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "thesis.txt").write_text("years")
    said = refusal(capsys, "translate", made.model, talk, "--out", tmp_path / "b", *SHORT)
    assert "b.partial is not unfinished work of sordino's" in said
    files.write_json(tmp_path / "b.partial" / artifact.REQUEST_FILE, {"section": {"pause": 7}, "parents": []})
    said = refusal(capsys, "translate", made.model, talk, "--out", tmp_path / "b", *SHORT)
    assert "b.partial was started with other settings: batch_size" in said
    assert (tmp_path / "b.partial" / "thesis.txt").read_text() == "years"
    (tmp_path / ".c.old").mkdir()
    assert ".c.old is in the way" in refusal(capsys, "translate", made.model, talk, "--out", tmp_path / "c", *SHORT)
    assert (tmp_path / ".c.old").is_dir()


def test_long_audio_without_a_way_to_cut_it_is_refused_before_anything_is_loaded(
    made: Made, talk: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voice, "available", lambda: False)
    monkeypatch.setattr(long_audio, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    said = refusal(capsys, "translate", made.model, talk, *SHORT)
    assert "the model hears 30 s at once" in said
    assert "--segments talk.yaml" in said
    assert "pip install '.[vad]'" in said


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Notes of what was left out are for people; refusals must be the only message on stderr."""
    monkeypatch.setattr(long_audio, "note", lambda _: None)
    yield


def test_json_is_one_line(made: Made, talk: Path, whole: Path, capsys: Capsys) -> None:
    run("translate", made.model, talk, "--out", whole, *SHORT)
    assert capsys.readouterr().out == f"{len(jsonl(whole / 'segments.jsonl'))} chunks: {whole}\n"
    run("translate", made.model, talk, "--out", whole, *SHORT, "--json")
    assert json.loads(capsys.readouterr().out)["out"] == str(whole)
