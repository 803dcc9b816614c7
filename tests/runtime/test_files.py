"""Our own files: whole or refused, readable by others, told apart by their contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino.errors import ArtifactError
from sordino.runtime import files


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{cut", "not JSON"),
        ("[]", "must hold a JSON object, and holds a list"),
        ("null", "holds null"),
        ("{}", "lacks 'section'"),
        ('{"section": 5}', "'section' cannot be 5"),
        ('{"section": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "stage.json").write_text(text)
    with pytest.raises(ArtifactError) as caught:
        files.read_json(tmp_path / "stage.json", {"section": dict})
    assert str(tmp_path / "stage.json") in caught.value.problem
    assert problem in caught.value.problem
    assert caught.value.remedy


def test_a_missing_record_and_a_directory_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing"):
        files.read_json(tmp_path / "stage.json")
    with pytest.raises(ArtifactError, match="is a directory"):
        files.read_json(tmp_path)


def test_numbers_that_only_python_writes_come_back(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"loss": float("inf")})
    assert files.read_json(tmp_path / "a") == {"loss": float("inf")}


@pytest.mark.parametrize("line", ["{cut", "[1]", "5", '{"a": "\\ud800"}'])
def test_a_damaged_line_of_progress_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "trials.jsonl").write_text(f'{{"a": 1}}\n{line}\n{{"torn')
    with pytest.raises(ArtifactError, match=r"trials\.jsonl:2"):
        files.read_jsonl(tmp_path / "trials.jsonl")


def test_every_file_can_be_read_by_others(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    for name, mode in (("model.safetensors", 0o600), ("run.sh", 0o700), ("kept", 0o666)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    mode = usual.stat().st_mode & 0o777
    files.readable(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode
    assert (tmp_path / "run.sh").stat().st_mode & 0o777 == 0o700 | mode
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o666
    (tmp_path / "again").touch()
    assert (tmp_path / "again").stat().st_mode & 0o777 == mode  # the mask is as it was


def test_written_text_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(tmp_path / "a.json", {"x": 1})

    def fail(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_json(tmp_path / "a.json", {"x": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
