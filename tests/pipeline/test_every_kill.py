"""A stage killed at each of its file operations in turn, and begun again: the same files, and nothing beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sordino.config import records
from sordino.pipeline import artifact, leftovers
from sordino.pipeline.artifact import Parent

PARENTS = [Parent("10-data", "aa")]
OPERATIONS = ("mkdir", "rename", "replace", "unlink", "rmdir", "open", "write_text")


class Killed(BaseException):
    """Not an Exception: no handler of ours sees it, as none sees SIGKILL."""


@contextmanager
def killed_at(number: int, patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Inside the block the file operation of this number, from 0, is the last that is not made. Yields its count."""
    done: list[int] = []

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            if len(done) == number:
                raise Killed
            done.append(1)
            return operation(*words, **options)

        return call

    with patch.context() as inside:
        for name in OPERATIONS:
            inside.setattr(Path, name, counted(getattr(Path, name)))
        inside.setattr(shutil, "rmtree", counted(shutil.rmtree))
        yield done


def work(directory: Path, lr: float) -> None:
    """A stage with progress that it resumes from, a file of a library, and a directory."""
    artifact.settle(directory)
    if artifact.why_stale(directory, {"lr": lr}, PARENTS) is None:
        return
    with artifact.building(directory, {"lr": lr}, PARENTS, {"stage": "rank"}) as (out, extra):
        state = out / leftovers.STATE_DIR
        state.mkdir(exist_ok=True)
        progress = state / "steps"
        if not progress.exists():
            progress.write_text(f"half of {lr}")
        (out / "sub").mkdir(exist_ok=True)
        (out / "sub" / "weights").write_text(f"{progress.read_text()}, all of {lr}")
        artifact.files.write_json(out / "result.json", {"lr": lr})
        extra["loss"] = lr


def files_of(root: Path) -> dict[str, str]:
    """Path -> content, of all but stage.json, which holds seconds."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.name != records.STAGE_FILE)
    return {path.relative_to(root).as_posix(): path.read_text() for path in sorted(paths)}


def fresh(directory: Path) -> None:
    pass


def finished_of_other_settings(directory: Path) -> None:
    work(directory, 2.0)


def unfinished_of_other_settings(directory: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        artifact.building(directory, {"lr": 2.0}, PARENTS, {"stage": "rank"}) as (
            out,
            _,
        ),
    ):
        (out / leftovers.STATE_DIR).mkdir()
        (out / leftovers.STATE_DIR / "steps").write_text("half of 2.0")
        (out / "a").write_text("of 2.0")
        (out / "b").mkdir()
        raise KeyboardInterrupt


def both(directory: Path) -> None:
    finished_of_other_settings(directory)
    with pytest.raises(KeyboardInterrupt), artifact.building(directory, {"lr": 3.0}, PARENTS, {"stage": "rank"}):
        raise KeyboardInterrupt


@pytest.mark.parametrize("before", [fresh, finished_of_other_settings, unfinished_of_other_settings, both])
def test_killed_anywhere_it_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Callable[[Path], None]
) -> None:
    straight = tmp_path / "straight" / "30-ranking"
    work(straight, 1.0)
    expected = files_of(straight.parent)
    assert expected["30-ranking/sub/weights"] == "half of 1.0, all of 1.0"
    number = 0
    while True:
        directory = tmp_path / str(number) / "30-ranking"
        before(directory)
        lost = set(files_of(directory.parent))
        try:
            with killed_at(number, monkeypatch) as done:
                work(directory, 1.0)
        except Killed:
            if directory.exists() and records.read_stage(directory) is not None:
                assert (directory / "result.json").is_file(), "what was finished stays whole"
            elif before in (finished_of_other_settings, both):
                assert leftovers.old_of(directory).exists(), f"{lost} is gone"
        else:
            assert len(done) <= number
            break
        finally:
            work(directory, 1.0)
            work(directory, 1.0)
            assert files_of(directory.parent) == expected, f"killed at operation {number}"
        number += 1
    assert number > 15
