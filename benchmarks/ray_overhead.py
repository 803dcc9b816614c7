"""What Ray costs: one worker against this process, on one run's teacher and select split.

    python benchmarks/ray_overhead.py runs/demo-en-de --clips 16 --remove 1 --repeats 3

The same search (exact, float32, one thread) by this process and by one worker of a cluster on this machine, in turn,
each first every other time. The clips are encoded before; starting the cluster is reported by itself. CPU seconds are
of the processes that compute and hand out, and with those of Ray's own beside them: on a machine that others use too,
their ratio says more than that of the wall clocks. The rankings must be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from sordino.runtime import environment

os.environ["OMP_NUM_THREADS"] = "1"
environment.prepare()  # its settings count only before torch is imported: hence the imports below it
environment.quiet_libraries()

import psutil
import torch

from sordino.config import records
from sordino.config.schema import RankSection
from sordino.data import manifest
from sordino.models import stored
from sordino.models.answers import answers_of
from sordino.models.features import Features
from sordino.pipeline import workers
from sordino.pipeline.model_source import ModelSource
from sordino.pipeline.ranking import search_on
from sordino.pruning.scoring import TargetLanguage
from sordino.pruning.scoring_worker import ScoringWorker
from sordino.runtime import ray_workers
from sordino.runtime.executor import Executor
from sordino.runtime.ray_workers import Needs, RayWorkers

WHO = "process", "worker"
WARM_UP = 4  # clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--remove", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as room:
        rows = measured(args.run, args.clips, args.remove, args.repeats, Path(room))
    print(
        f"{args.clips} clips, {args.remove} layers, median of {args.repeats} pairs; "
        f"Ray {version()}, torch {torch.__version__}"
    )
    for what in ("wall", "cpu", "cpu with Ray's own"):
        alone, by_ray = (median(row[f"{who} {what}"] for row in rows) for who in ("process", "worker"))
        ratio = median(row[f"worker {what}"] / row[f"process {what}"] for row in rows)
        print(f"{what} seconds: process {alone:.2f}, one worker {by_ray:.2f}, ratio {ratio:.3f}")


def measured(run: Path, clips: int, remove: int, repeats: int, room: Path) -> list[dict[str, float]]:
    source = ModelSource(str(run / "20-teacher"), None, "cpu", "float32", None)
    speech = source.open()
    language = encoded(run, speech, clips, room / "cache")
    hollow = stored.without_weights(source.path, torch.float32)
    started = time.perf_counter()
    ray_workers.connect(None)
    start = partial(workers._open_model, source, ScoringWorker, room / "cache", "cpu")
    with RayWorkers(start, 1, Needs(1, 0), "cpu") as executor:
        list(executor.run(cpu_seconds, [0], "warm-up"))
        print(f"Ray and its worker were ready after {time.perf_counter() - started:.1f} s")

        def pair(of: TargetLanguage, section: RankSection, order: Sequence[str]) -> dict[str, float]:
            row: dict[str, float] = {}
            searches = {
                "process": lambda: search(speech, of, section),
                "worker": lambda: search(hollow, of, section, executor),
            }
            results = {who: timed(row, who, executor, searches[who]) for who in order}
            assert results["process"] == results["worker"], "the removals differ"
            return row

        pair(first(language, WARM_UP), RankSection(remove=1), WHO)
        rows = []
        for number in range(repeats):
            rows.append(pair(language, RankSection(remove=remove), WHO if number % 2 else WHO[::-1]))
            print(", ".join(f"{name} {seconds:.2f}" for name, seconds in rows[-1].items()), flush=True)
        return rows


def first(language: TargetLanguage, count: int) -> TargetLanguage:
    return TargetLanguage(
        language.target, language.encoded[:count], language.references[:count], language.answers[:count]
    )


def encoded(run: Path, speech: Any, count: int, cache: Path) -> TargetLanguage:
    record = records.read_stage(run / "30-ranking")
    assert record
    clips = manifest.read(run / "10-data/select.jsonl")[:count]
    features = Features(speech, cache).encode_all(clips, record["prompts"][0])
    return TargetLanguage("de", features, [c.target_text or "" for c in clips], answers_of(speech, clips, "chat"))


def search(
    speech: Any, language: TargetLanguage, section: RankSection, executor: Executor[ScoringWorker] | None = None
) -> Any:
    found = search_on(speech, [language], section, "chrf++", 0, executor=executor)
    return [dataclasses.replace(removal.trial, hypotheses=None) for removal in found.removals], found.order


def timed(row: dict[str, float], who: str, executor: RayWorkers[ScoringWorker], work: Callable[[], Any]) -> Any:
    """Seconds of this process and, where it hands out, of the worker; and of all processes that Ray began."""
    before, rays, wall = clocks(executor), ray_seconds(), time.perf_counter()
    result = work()
    row[f"{who} wall"], after, rays = time.perf_counter() - wall, clocks(executor), ray_seconds() - rays
    own, worker = (now - then for now, then in zip(after, before, strict=True))
    row[f"{who} cpu"] = own + (worker if who == "worker" else 0.0)
    # of Ray's processes the worker is one; while this process searches, they idle and are no part of it
    row[f"{who} cpu with Ray's own"] = own + (rays if who == "worker" else 0.0)
    return result


def clocks(executor: RayWorkers[ScoringWorker]) -> tuple[float, float]:
    """CPU seconds of this process, which hands out the work, and of the worker."""
    ((_, seconds),) = executor.run(cpu_seconds, [0], "clock")
    return time.process_time(), seconds


def cpu_seconds(worker: ScoringWorker, task: int) -> float:
    return time.process_time()


def ray_seconds() -> float:
    """CPU seconds of all processes below this one."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def version() -> str:
    import ray

    return str(ray.__version__)


if __name__ == "__main__":
    main()
