"""The run-directory contract: never half there, resumed or begun anew, and says why it is out of date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino.config import records
from sordino.errors import ArtifactError
from sordino.pipeline import artifact
from sordino.pipeline.artifact import Parent
from sordino.runtime import files

SECTION = {"lr": 1.0, "layers": [1, 2]}
PARENTS = [Parent("10-data", "aa"), Parent("model", "bb")]
FACTS = {"stage": "rank", "recipe": "r", "seed": 0, "device": "cpu"}


def build(directory: Path, text: str = "result", section: dict[str, object] | None = None) -> None:
    with artifact.building(directory, section or SECTION, PARENTS, FACTS) as (out, extra):
        (out / "file.txt").write_text(text)
        (out / "sub").mkdir(exist_ok=True)
        (out / "sub" / "more.bin").write_bytes(b"\0")
        extra["device"] = "cuda:0"


def test_stage_json_holds_what_was_promised(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "30-ranking"
    build(directory)
    stage = json.loads((directory / "stage.json").read_text())
    assert stage["section"] == SECTION
    assert stage["parents"] == [{"path": "10-data", "hash": "aa"}, {"path": "model", "hash": "bb"}]
    assert stage["stage"] == "rank"
    assert stage["seed"] == 0
    assert stage["device"] == "cuda:0"  # what the stage found out goes before what was planned
    assert stage["complete"] is True
    assert stage["seconds"] >= 0
    assert stage["peak_memory_bytes"] > 10**6
    assert {"python", "sordino", "torch", "transformers"} <= set(stage["versions"])
    assert stage["git"] is None or set(stage["git"]) == {"commit", "dirty"}
    assert set(stage["outputs"]) == {"file.txt", "sub/more.bin"}
    assert stage["hash"] == files.combined(stage["outputs"])
    assert records.read_stage(directory) == stage
    assert not artifact.partial_of(directory).exists()
    assert sorted(p.name for p in directory.iterdir()) == ["file.txt", "stage.json", "sub"]


def test_writing_leaves_the_old_file_or_the_whole_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    files.write_json(file, {"ä": 1})
    assert file.read_text(encoding="utf-8") == '{\n  "ä": 1\n}\n'

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(file, {"new": 2})
    assert files.read_json(file) == {"ä": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_partial_directory_is_resumed_only_for_the_same_request(tmp_path: Path) -> None:
    directory = tmp_path / "stage"

    def killed(section: dict[str, object], parents: list[Parent]) -> bool:
        """Whether the directory still held what an earlier, killed stage had left."""
        with pytest.raises(KeyboardInterrupt), artifact.building(directory, section, parents, FACTS) as (out, _):
            found = (out / "progress").exists()
            (out / "progress").write_text("x")
            raise KeyboardInterrupt
        assert not directory.exists()
        return found

    assert killed(SECTION, PARENTS) is False
    assert killed(SECTION, PARENTS) is True
    assert killed({**SECTION, "layers": (1, 2)}, PARENTS) is True  # as JSON gives it back
    assert killed({**SECTION, "lr": 2.0}, PARENTS) is False
    assert killed({**SECTION, "lr": 2.0}, [PARENTS[0], Parent("model", "cc")]) is False
    assert artifact.why_stale(directory, SECTION, PARENTS) == "was interrupted"


def test_the_finished_directory_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    build(directory, "old")
    with (
        pytest.raises(RuntimeError),
        artifact.building(directory, {"lr": 2.0}, PARENTS, FACTS) as (out, _),
    ):
        (out / "file.txt").write_text("half")
        assert (directory / "file.txt").read_text() == "old"
        raise RuntimeError
    assert (directory / "file.txt").read_text() == "old"
    assert artifact.why_stale(directory, SECTION, PARENTS) is None
    build(directory, "new", {"lr": 2.0})
    assert (directory / "file.txt").read_text() == "new"
    assert artifact.why_stale(directory, {"lr": 2.0}, PARENTS) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stage"]


@pytest.mark.parametrize("when", ["before stage.json", "before the rename"])
def test_a_kill_while_finishing_loses_no_resume_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    directory = tmp_path / "stage"

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def attempt() -> bool:
        with artifact.building(directory, SECTION, PARENTS, FACTS) as (out, _):
            state = out / artifact.STATE_DIR
            found = state.exists()
            state.mkdir(exist_ok=True)
            (state / "step").write_text("9")
            (out / "sub").mkdir(exist_ok=True)
            (out / "sub" / ".file.txt.77.tmp").write_text("torn")
            if when == "before stage.json" and not found:
                monkeypatch.setattr(artifact, "fingerprints", kill)
            elif not found:
                monkeypatch.setattr(Path, "rename", kill)
        return found

    with pytest.raises(KeyboardInterrupt):
        attempt()
    monkeypatch.undo()
    assert records.read_stage(directory) is None
    assert attempt() is True
    assert records.read_stage(directory) is not None
    assert [p.name for p in directory.rglob("*") if p.is_file()] == ["stage.json"]


def test_why_stale_names_what_changed(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    assert artifact.why_stale(directory, SECTION, PARENTS) == "not run yet"
    build(directory)
    assert artifact.why_stale(directory, SECTION, PARENTS) is None
    changed = {"lr": 2.0, "new": 1}
    assert artifact.why_stale(directory, changed, PARENTS) == "settings changed: layers, lr, new"
    other = [PARENTS[0], Parent("model", "cc")]
    assert artifact.why_stale(directory, SECTION, other) == "made from other inputs: model"
    assert artifact.why_stale(directory, SECTION, PARENTS[:1]) == "made from other inputs: model"
    (directory / "sub" / "more.bin").unlink()
    assert artifact.why_stale(directory, SECTION, PARENTS) == "sub/more.bin is missing"


def test_an_unfinished_stage_json_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text('{"complete": false}')
    assert records.read_stage(tmp_path) is None
    (tmp_path / "stage.json").write_text('{"complete": tr')
    with pytest.raises(ArtifactError, match=r"stage\.json is damaged"):
        records.read_stage(tmp_path)
    with pytest.raises(ArtifactError, match="absent is missing"):
        files.read_json(tmp_path / "absent")


def test_a_torn_last_line_is_cut_off_the_file(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    assert files.read_jsonl(file) == []
    rows = [{"n": 1, "text": "ä\u2028b\u0085c"}, {"n": 2, "text": ""}]  # marks that only str.splitlines takes for ends
    for row in rows:
        files.append_jsonl(file, row)
    whole = file.read_bytes()
    for torn in (b'{"n": 3', "ö".encode()[:1], b'{"n": 3, "text": "x"}'):
        file.write_bytes(whole + torn)
        assert files.read_jsonl(file) == rows
        assert file.read_bytes() == whole
    files.append_jsonl(file, {"n": 3})
    assert len(files.read_jsonl(file)) == 3
    file.write_bytes(b'{"n": 1')
    assert files.read_jsonl(file) == []
    assert file.read_bytes() == b""
    file.write_bytes(b'{"n": 1\n{"n": 2}\n')
    with pytest.raises(ArtifactError, match="is damaged"):
        files.read_jsonl(file)


def test_fingerprints_see_content_and_names(tmp_path: Path) -> None:
    for name, text in (("a/x", "1"), ("a/.hidden", "9"), ("b/x", "1"), ("c/y", "1"), ("d/x", "2")):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    a, b, c, d = (artifact.fingerprint(tmp_path / name) for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
    assert artifact.fingerprint(tmp_path / "a" / "x") == files.fingerprint_file(tmp_path / "b" / "x")


def test_large_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WHOLE_FILE_BYTES", 100)
    monkeypatch.setattr(files, "SAMPLE_BYTES", 10)
    monkeypatch.setattr(files, "SAMPLES", 4)
    file = tmp_path / "big"

    def of(data: bytes) -> str:
        file.write_bytes(data)
        return files.fingerprint_file(file)

    data = bytes(range(250)) * 4  # 1,000 bytes; samples begin at 0, 330, 660, 990
    same = of(data)
    for at in (0, 9, 330, 339, 660, 990, 999):
        assert of(data[:at] + b"\xff" + data[at + 1 :]) != same, at
    assert of(data[:15] + b"\xff" + data[16:]) == same  # between the samples: the price of not reading it all
    assert of(data[:-1]) != same
    assert of(data + b"\0") != same
    assert of(data[:100]) != of(data[:99] + b"\xff")  # small enough to be read whole


def test_one_process_at_a_time_works_in_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with artifact.locked(run), pytest.raises(ArtifactError, match="another sordino"), artifact.locked(run):
        pass
    with artifact.locked(tmp_path / "run"):
        pass


def finished(directory: Path, text: str) -> None:
    """A finished artefact, beside whatever is there."""
    build(directory.with_name("made"), text)
    directory.with_name("made").rename(directory)


@pytest.mark.parametrize("renames", [0, 1, 2])
@pytest.mark.parametrize("had_one", [True, False])
def test_a_kill_between_the_renames_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, had_one: bool, renames: int
) -> None:
    """Killed before the first, the second rename, or the cleaning: the new result is put into place, once."""
    directory = tmp_path / "stage"
    if had_one:
        build(directory, "old")
    elif renames == 2:
        renames = 1
    rename, done = Path.rename, []

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    def some(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            return rename(path, target)
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", some)
        patch.setattr(artifact, "_clear", kill)
        with (
            pytest.raises(KeyboardInterrupt),
            artifact.building(directory, {"lr": 2.0}, PARENTS, FACTS) as (out, _),
        ):
            (out / "file.txt").write_text("new")
            (out / artifact.STATE_DIR).mkdir()
            (out / artifact.STATE_DIR / "step").write_text("9")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert before != ["stage"] or (directory / artifact.STATE_DIR).exists()
    for _ in range(2):
        artifact.settle(directory)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["stage"]
        assert sorted(p.name for p in directory.iterdir()) == ["file.txt", "stage.json"]
        assert (directory / "file.txt").read_text() == "new"
        assert artifact.why_stale(directory, {"lr": 2.0}, PARENTS) is None


def test_settling_leaves_what_is_not_finished(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    artifact.settle(directory)
    assert list(tmp_path.iterdir()) == []
    finished(artifact.old_of(directory), "old")  # the new result was deleted by hand: the former one comes back
    artifact.settle(directory)
    assert (directory / "file.txt").read_text() == "old"
    artifact.partial_of(directory).mkdir()
    (artifact.partial_of(directory) / "progress").write_text("x")
    artifact.settle(directory)
    assert (directory / "file.txt").read_text() == "old"
    assert (artifact.partial_of(directory) / "progress").exists()


def test_a_partial_directory_that_is_worked_in_does_not_look_finished(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    finished(artifact.partial_of(directory), "half")
    files.write_json(
        artifact.partial_of(directory) / artifact.REQUEST_FILE,
        {"section": SECTION, "parents": [p.to_json() for p in PARENTS]},
    )
    with pytest.raises(KeyboardInterrupt), artifact.building(directory, SECTION, PARENTS, FACTS):
        raise KeyboardInterrupt
    artifact.settle(directory)
    assert not directory.exists()


def test_late_settings_keep_the_progress(tmp_path: Path) -> None:
    directory = tmp_path / "stage"

    def killed(section: dict[str, object]) -> bool:
        resumable = ("layers", "not_there")
        with (
            pytest.raises(KeyboardInterrupt),
            artifact.building(directory, section, PARENTS, FACTS, resumable) as (out, _),
        ):
            found = (out / "progress").exists()
            (out / "progress").write_text("x")
            raise KeyboardInterrupt
        return found

    assert killed(SECTION) is False
    assert killed({**SECTION, "layers": [3]}) is True
    assert killed({**SECTION, "layers": [3], "lr": 3.0}) is False
