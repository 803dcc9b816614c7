"""What lies where a stage will write: strangers' files are refused and kept, what a kill left goes on or goes away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sordino.config import records
from sordino.errors import ArtifactError
from sordino.pipeline import artifact, leftovers, locks
from sordino.pipeline.artifact import Parent

SECTION, PARENTS, FACTS = {"lr": 1.0}, [Parent("10-data", "aa")], {"stage": "rank"}


def build(directory: Path, text: str = "result", lr: float = 1.0) -> None:
    with artifact.building(directory, {"lr": lr}, PARENTS, FACTS) as (out, _):
        (out / "file.txt").write_text(text)


def everything(directory: Path) -> dict[str, bytes | None]:
    """Path -> content; None for directories and links."""
    paths = sorted(directory.rglob("*"))
    return {str(p): p.read_bytes() if p.is_file() and not p.is_symlink() else None for p in paths}


def strange_directory(place: Path) -> Path:
    (place / "notes").mkdir(parents=True)
    (place / "notes" / "mine.txt").write_text("years")
    return place / "notes" / "mine.txt"


def strange_file(place: Path) -> Path:
    place.write_text("years")
    return place


def strange_link(place: Path) -> Path:
    (place.parent / "elsewhere").mkdir()
    (place.parent / "elsewhere" / "mine.txt").write_text("years")
    place.symlink_to(place.parent / "elsewhere")
    return place


def dead_link(place: Path) -> Path:
    place.symlink_to(place.parent / "gone")
    return place


def hidden_file(place: Path) -> Path:
    place.mkdir()
    (place / ".mine").write_text("years")
    return place / ".mine"


@pytest.mark.parametrize("make", [strange_directory, strange_file, strange_link, dead_link, hidden_file])
@pytest.mark.parametrize("where", [lambda d: d, leftovers.partial_of, leftovers.old_of], ids=["own", "partial", "old"])
def test_what_no_stage_made_is_refused_and_stays(tmp_path: Path, make: object, where: object) -> None:
    directory = tmp_path / "30-ranking"
    stranger = make(where(directory))  # type: ignore[operator]
    before = everything(tmp_path)
    artifact.settle(directory)
    with (
        pytest.raises(ArtifactError, match="not of sordino's making") as caught,
        artifact.building(directory, SECTION, PARENTS, FACTS),
    ):
        pytest.fail("it began")
    assert str(stranger) in str(caught.value)
    assert everything(tmp_path) == before


def test_a_strangers_file_in_a_finished_stage_is_not_replaced_with_it(tmp_path: Path) -> None:
    directory = tmp_path / "30-ranking"
    build(directory)
    (directory / "mine.txt").write_text("years")
    assert artifact.why_stale(directory, SECTION, PARENTS) is None  # it may lie there
    with pytest.raises(ArtifactError, match=r"30-ranking/mine\.txt is not of sordino's making"):
        build(directory, "new", 2.0)
    assert (directory / "mine.txt").read_text() == "years"
    assert (directory / "file.txt").read_text() == "result"
    (directory / "mine.txt").unlink()
    (directory / ".DS_Store").write_bytes(b"\0")  # that would come back by itself
    build(directory, "new", 2.0)
    assert sorted(p.name for p in directory.iterdir()) == ["file.txt", "stage.json"]


def test_a_strangers_file_that_comes_while_a_stage_works_stays(tmp_path: Path) -> None:
    directory = tmp_path / "30-ranking"
    build(directory)
    with (
        pytest.raises(ArtifactError, match="not of sordino's making"),
        artifact.building(directory, {"lr": 2.0}, PARENTS, FACTS) as (out, _),
    ):
        (out / "file.txt").write_text("new")
        (directory / "mine.txt").write_text("years")
    assert (directory / "mine.txt").read_text() == "years"
    (directory / "mine.txt").rename(tmp_path / "mine.txt")
    artifact.settle(directory)  # all that was missing are the renames
    assert (directory / "file.txt").read_text() == "new"


def test_an_empty_directory_and_a_link_to_a_finished_stage_are_no_strangers(tmp_path: Path) -> None:
    directory = tmp_path / "30-ranking"
    (directory / "sub").mkdir(parents=True)
    build(directory)
    moved = tmp_path / "large disk"
    directory.rename(moved)
    directory.symlink_to(moved)
    assert artifact.why_stale(directory, SECTION, PARENTS) is None
    build(directory, "new", 2.0)
    assert (directory / "file.txt").read_text() == "new"
    assert not directory.is_symlink()
    assert (moved / "file.txt").read_text() == "result"


@pytest.mark.parametrize("torn", [[], ["..request.json.77.tmp"], ["sub/.a.77.tmp", ".state/.step-3.tmp/state.json"]])
def test_killed_before_its_request_was_written_it_goes_on(tmp_path: Path, torn: list[str]) -> None:
    directory = tmp_path / "talk"
    partial = leftovers.partial_of(directory)
    partial.mkdir()
    for name in torn:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text("half")
    assert artifact.why_not_resumed(directory, SECTION, PARENTS) is None
    assert artifact.why_stale(directory, SECTION, PARENTS) == "was interrupted"
    build(directory)
    assert [p for p in directory.rglob("*") if p.is_file() and p.name not in ("file.txt", "stage.json")] == []


def test_killed_while_it_is_thrown_away_nothing_goes_on_from_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "30-ranking"
    with pytest.raises(KeyboardInterrupt), artifact.building(directory, SECTION, PARENTS, FACTS) as (out, _):
        (out / "a").write_text("of the first settings")
        (out / "b").write_text("of the first settings")
        raise KeyboardInterrupt
    removed: list[Path] = []

    def killed(path: Path) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(leftovers, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            build(directory, lr=2.0)
    assert len(removed) == 1
    with artifact.building(directory, SECTION, PARENTS, FACTS) as (out, _):
        assert {p.name for p in out.iterdir()} == {leftovers.REQUEST_FILE}
    assert records.read_stage(directory)


def test_a_refusal_is_no_interruption(tmp_path: Path) -> None:
    directory = tmp_path / "10-data"
    with pytest.raises(ArtifactError), artifact.building(directory, SECTION, PARENTS, FACTS) as (out, _):
        (out / "progress").write_text("x")
        raise ArtifactError("the clip is silent.")
    assert artifact.why_stale(directory, SECTION, PARENTS) == "was refused the last time"
    with pytest.raises(KeyboardInterrupt), artifact.building(directory, SECTION, PARENTS, FACTS) as (out, _):
        assert (out / "progress").exists()
        raise KeyboardInterrupt
    assert artifact.why_stale(directory, SECTION, PARENTS) == "was interrupted"


def test_an_error_of_the_machine_says_where(tmp_path: Path) -> None:
    directory = tmp_path / "10-data"
    with (
        pytest.raises(ArtifactError, match=r"10-data\.partial: the disk is full"),
        artifact.building(directory, SECTION, PARENTS, FACTS),
    ):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert artifact.why_stale(directory, SECTION, PARENTS) == "was interrupted"
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"file/10-data\.partial: a file is where a directory must be"):
        build(tmp_path / "file" / "10-data")
    with pytest.raises(ArtifactError, match="the name is too long"):
        build(tmp_path / ("x" * 250))


def test_torn_files_of_the_cache_go_when_their_process_has_gone(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        f"abc/1f.{ended.pid}-140.tmp": False,
        f"sweep/.point.json.{ended.pid}.tmp": False,
        f"abc/2f.{os.getpid()}-140.tmp": False,  # of this number, and there before this process began to write
        f"abc/3f.{os.getppid()}-140.tmp": True,
        "abc/4f.safetensors": True,
        "abc/notes.tmp": True,
        "abc/5f.99999999999999999999.tmp": False,
    }
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    leftovers.clear_cache(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


@pytest.mark.parametrize("number", locks.WITHOUT_LOCKS)
def test_a_file_system_without_locks_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    def without(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    notes: list[str] = []
    monkeypatch.setattr(fcntl, "flock", without)
    monkeypatch.setattr(locks, "note", notes.append)
    monkeypatch.setattr(locks, "_warned", set())
    build(tmp_path / "a")
    build(tmp_path / "b")
    assert records.read_stage(tmp_path / "b")
    (line,) = notes
    assert str(tmp_path) in line
    assert "no locks" in line


NO_OBJECTS = ["[]", "null", "7", "{}", '{"section": []}', "[" * 5000 + "]" * 5000]
WHOLE = {"complete": True, "section": {}, "parents": [], "outputs": {}, "hash": "x"}
NO_RECORDS = [{"parents": [1]}, {"parents": [{}]}, {"parents": {}}, {"outputs": []}, {"hash": 5}, {"schema": "new"}]


@pytest.mark.parametrize("record", [*NO_OBJECTS[:3], *NO_OBJECTS[4:], *(json.dumps(WHOLE | row) for row in NO_RECORDS)])
def test_a_stage_json_that_is_no_record_is_one_line(tmp_path: Path, record: str) -> None:
    (tmp_path / "stage.json").write_text(record.replace('{"section": []}', '{"section": [], "complete": true}'))
    with pytest.raises(ArtifactError, match=r"stage\.json"):
        records.read_stage(tmp_path)


@pytest.mark.parametrize("record", NO_OBJECTS)
def test_a_request_that_is_no_record_is_one_line(tmp_path: Path, record: str) -> None:
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / leftovers.REQUEST_FILE).write_text(record)
    for look in (artifact.why_stale, artifact.why_not_resumed):
        with pytest.raises(ArtifactError, match=r"\.request\.json"):
            look(tmp_path / "s", SECTION, PARENTS)
