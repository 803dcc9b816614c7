"""Errors of the machine are one sentence with a place and a remedy, whoever raises them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import safetensors

from sordino.errors import OF_THE_MACHINE, ArtifactError, explain_os_error


def explained(error: BaseException, path: str | Path | None = None) -> str:
    told = explain_os_error(error, path)
    assert isinstance(told, ArtifactError)
    assert told.remedy
    return told.problem


@pytest.mark.parametrize("number", OF_THE_MACHINE)
def test_every_error_names_its_file(number: int) -> None:
    told = explained(OSError(number, os.strerror(number), "/runs/x/model.safetensors"))
    assert told.startswith("/runs/x/model.safetensors: ")


def test_errors_of_the_real_machine(tmp_path: Path) -> None:
    def raised(path: Path) -> str:
        with pytest.raises(OSError) as caught:
            path.read_text()
        return explained(caught.value)

    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert raised(tmp_path / "none").endswith("none: there is no such file or directory.")
    assert raised(tmp_path).endswith("this is a directory, not a file.")
    assert "file is where a directory must be" in raised(tmp_path / "file" / "x")
    assert "leads back to itself" in raised(tmp_path / "loop")
    long = raised(tmp_path / ("x" * 5000))
    assert "name is too long" in long
    assert len(long) < 600


def test_a_name_relative_to_an_unknown_place_is_completed(tmp_path: Path) -> None:
    """shutil.rmtree names what it could not remove without the directory it was in."""
    error = PermissionError(errno.EACCES, "Permission denied", ".request.json")
    assert explained(error, tmp_path / "10-data") == f"{tmp_path}/10-data/.request.json: permission denied."
    assert explained(OSError(errno.ENOSPC, "No space left on device"), "runs/x") == "runs/x: the disk is full."
    assert explained(OSError(errno.ENOSPC, "No space left on device")) == "the disk is full."  # behind > /dev/full
    moved = OSError(errno.EISDIR, "Is a directory", "/a/.x.tmp", None, "/a/x\x1b")
    assert explained(moved) == "/a/x\\x1b: this is a directory, not a file."


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            safetensors.SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
            "grow beyond",
        ),
        (RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter: No space left on device"), "full"),
        (ValueError("cannot write: [Errno 122] Disk quota exceeded"), "quota"),
    ],
)
def test_errors_that_libraries_wrap(error: Exception, told: str) -> None:
    assert told in explained(error, "/runs/x")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        OSError("Can't load the tokenizer"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        RuntimeError("a bug of ours: [Errno 2] No such file or directory"),
    ],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert explain_os_error(error, "/runs/x") is None
