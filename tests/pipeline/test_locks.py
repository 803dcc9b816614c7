"""One sordino at a time in a run: on this machine, on others, and the stages that may run side by side."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sordino.errors import ArtifactError
from sordino.pipeline import locks
from sordino.pipeline.locks import run_locked


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the directory lay on a file system of several machines, whose locks are not passed on."""
    monkeypatch.setattr(locks, "is_shared", lambda _: True)
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: None)


def ended_process() -> int:
    return subprocess.Popen([sys.executable, "-c", ""]).wait() or int(
        subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True).stdout
    )


def hold(run: Path, stage: str, host: str, process: int = 1, beside: bool = False) -> Path:
    file = run / f".lock-{stage}"
    file.write_text(json.dumps({"host": host, "process": process, "stage": stage, "beside": beside}))
    return file


def test_on_a_local_disk_the_kernel_s_lock_is_all(tmp_path: Path) -> None:
    if locks.is_shared(tmp_path):
        pytest.skip("temporary files lie on a network file system")
    with run_locked(tmp_path, "finetune"):
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ArtifactError, match="another sordino"), run_locked(tmp_path, "rank", beside=True):
            pass


def test_rank_and_pseudolabel_run_side_by_side_and_nothing_else_beside_them(tmp_path: Path) -> None:
    with (
        run_locked(tmp_path, "rank", beside=True),
        run_locked(tmp_path, "pseudolabel", beside=True),
        pytest.raises(ArtifactError, match="another sordino"),
        run_locked(tmp_path, "finetune"),
    ):
        pass
    with run_locked(tmp_path, "finetune"):
        pass


@pytest.mark.usefixtures("shared")
def test_a_lock_of_another_host_is_never_taken_over(tmp_path: Path) -> None:
    file = hold(tmp_path, "finetune", "node7", 4711)
    with pytest.raises(ArtifactError) as told, run_locked(tmp_path, "prune"):
        pass
    assert told.value.problem == f"another sordino is working in {tmp_path}: finetune, process 4711 on node7."
    assert told.value.remedy == f"Wait for it. If it was killed there, delete {file}."
    assert [path.name for path in tmp_path.iterdir()] == [".lock-finetune"]
    with pytest.raises(ArtifactError, match="4711 on node7"), run_locked(tmp_path, "finetune"):
        pass
    file.unlink()
    with run_locked(tmp_path, "prune"):
        assert json.loads((tmp_path / ".lock-prune").read_text())["host"] == socket.gethostname()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("shared")
def test_what_a_killed_process_of_this_host_left_is_taken_over(tmp_path: Path) -> None:
    hold(tmp_path, "finetune", socket.gethostname(), ended_process())
    with run_locked(tmp_path, "finetune"):
        pass
    hold(tmp_path, "finetune", socket.gethostname(), 1)  # lives as long as the machine
    with pytest.raises(ArtifactError, match=r"process 1 on"), run_locked(tmp_path, "rank", beside=True):
        pass


@pytest.mark.usefixtures("shared")
def test_side_by_side_on_two_hosts(tmp_path: Path) -> None:
    hold(tmp_path, "rank", "node7", beside=True)
    with run_locked(tmp_path, "pseudolabel", beside=True):
        assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ArtifactError, match="rank, process 1 on node7"), run_locked(tmp_path, "prune"):
        pass
    with pytest.raises(ArtifactError, match="rank, process 1 on node7"), run_locked(tmp_path, "rank", beside=True):
        pass


@pytest.mark.usefixtures("shared")
def test_a_damaged_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock-finetune").write_text("{")
    with pytest.raises(ArtifactError, match=r"\.lock-finetune says that another sordino"), run_locked(tmp_path, "rank"):
        pass
