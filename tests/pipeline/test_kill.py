"""A run that is killed with SIGKILL, again and again, ends with the bytes of one that was not.

The run to be killed is a process of its own, forked from a server that has imported torch already. Every flush to
disk is slowed down there, so that the kill comes between two of them and not after the last.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.runs import Made, jsonl, run, stage_json

PAUSE = 0.03  # seconds after every flush
PATIENCE = 60.0  # seconds until something must have happened
# stage directory -> what is in its partial directory when the kill comes
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "20-teacher": lambda partial: bool(list(partial.glob(".state/train/step-*"))),
    "30-ranking": lambda partial: lines(partial / "trials.jsonl") >= 2,
    "40-pruned": lambda partial: (partial / "model.safetensors").exists(),
    "50-pseudo": lambda partial: lines(partial / ".state" / "pseudo.jsonl") >= 1,
    "61-adapter": lambda partial: bool(list(partial.glob(".state/train/step-*"))),
    "80-outputs": lambda partial: (partial / "base" / "speed.json").exists(),
}
KILLED = [name for name in MOMENTS if name != "80-outputs"]
SHORTER = {"export": None, "evaluate": None, "report": None, "translate": {"systems": ["base", "pruned", "merged"]}}


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def slowly(words: list[str]) -> None:
    """The command line, in the process that will be killed."""
    from sordino.cli import main

    flush = os.fsync

    def slow(descriptor: int) -> None:
        flush(descriptor)
        time.sleep(PAUSE)

    os.fsync = slow
    main(words)


@functools.cache
def server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["sordino.pipeline.runner", "transformers.models.qwen2_audio.modeling_qwen2_audio", "bitsandbytes", "peft"]
    )
    return context


def kill_when(words: list[str], moment: Callable[[], bool]) -> None:
    """Start a command and kill it at a moment that must come before it ends."""
    process = server().Process(target=slowly, args=(words,))
    process.start()
    end = time.monotonic() + PATIENCE
    while not moment():
        assert process.is_alive(), "it ended before it could be killed"
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.002)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def survived(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in every long stage, and its directory."""
    directory = tmp_path_factory.mktemp("killed")
    file = made.recipe(directory, SHORTER)
    there = directory / "runs" / "run"
    for name, moment in MOMENTS.items():
        partial = there / f"{name}.partial"
        kill_when(["run", str(file)], lambda partial=partial, moment=moment: moment(partial))  # type: ignore[misc]
        assert partial.is_dir()
        assert not (there / name).exists()
    run("run", file)
    return there


@pytest.mark.parametrize("name", ["10-data", *KILLED, "60-student", "62-merged"])
def test_a_killed_run_ends_with_the_same_bytes(made: Made, survived: Path, name: str) -> None:
    straight, killed = made.finished / name, survived / name
    files = sorted(p.relative_to(straight) for p in straight.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(killed) for p in killed.rglob("*") if p.is_file())
    compared = [f for f in files if f.name != "stage.json"]  # holds seconds
    assert compared
    assert [f for f in compared if (straight / f).read_bytes() != (killed / f).read_bytes()] == []
    assert stage_json(straight)["section"] == stage_json(killed)["section"]


def test_the_hypotheses_are_the_same(made: Made, survived: Path) -> None:
    found = sorted(p.relative_to(survived) for p in survived.glob("80-outputs/*/test.jsonl"))
    assert len(found) == 3
    for file in found:
        one, other = (
            [{k: v for k, v in row.items() if k != "seconds"} for row in jsonl(root / file)]
            for root in (made.finished, survived)
        )
        assert one == other


def test_nothing_is_left_of_the_kills(survived: Path) -> None:
    assert [p.name for p in survived.iterdir() if p.name.endswith((".partial", ".old"))] == []
    assert [p for p in survived.rglob(".*") if "cache" not in p.parts] == []
