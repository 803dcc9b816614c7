"""What Ray costs: one worker against this process, on one run's teacher and select split.

    python benchmarks/ray_overhead.py runs/demo-en-de --clips 24 --remove 2 --repeats 3

The same search (exact, float32, one thread) by this process and by one worker of a cluster on this machine, in turn;
the clips are encoded before, the worker is open. CPU seconds are of the processes that compute and hand out: on a
machine that others use too, their ratio says more than that of the wall clocks. The rankings must be the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from sordino.runtime import environment

os.environ["OMP_NUM_THREADS"] = "1"
environment.prepare()  # its settings count only before torch is imported: hence the imports below it
environment.quiet_libraries()

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--remove", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as room:
        rows = measured(args.run, args.clips, args.remove, args.repeats, Path(room))
    print(
        f"{args.clips} clips, {args.remove} layers, median of {args.repeats}; "
        f"Ray {version()}, torch {torch.__version__}"
    )
    for what in ("wall", "cpu"):
        alone, by_ray = (median(row[f"{who} {what}"] for row in rows) for who in ("process", "worker"))
        ratio = median(row[f"worker {what}"] / row[f"process {what}"] for row in rows)
        print(f"{what} seconds: process {alone:.2f}, one worker {by_ray:.2f}, ratio {ratio:.3f}")


def measured(run: Path, clips: int, remove: int, repeats: int, room: Path) -> list[dict[str, float]]:
    source = ModelSource(str(run / "20-teacher"), None, "cpu", "float32", None)
    speech = source.open()
    language = encoded(run, speech, clips, room / "cache")
    section = RankSection(remove=remove)
    started = time.perf_counter()
    ray_workers.connect(None)
    start = partial(workers._open_model, source, ScoringWorker, room / "cache", "cpu")
    rows = []
    with RayWorkers(start, 1, Needs(1, 0), "cpu") as executor:
        list(executor.run(cpu_seconds, [0], "warm-up"))
        print(f"Ray and its worker were ready after {time.perf_counter() - started:.1f} s")
        hollow = stored.without_weights(str(run / "20-teacher"), torch.float32)
        for number in range(repeats + 1):
            row: dict[str, Any] = {}
            alone = timed(row, "process", time.process_time, lambda: search(speech, language, section))
            by_ray = timed(
                row, "worker", lambda: worker_seconds(executor), lambda: search(hollow, language, section, executor)
            )
            assert alone == by_ray, "the removals differ"
            if number:  # the first is for warm caches
                rows.append(row)
    return rows


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


def timed(row: dict[str, Any], who: str, seconds: Any, work: Any) -> Any:
    cpu, wall = seconds(), time.perf_counter()
    result = work()
    row[f"{who} wall"], row[f"{who} cpu"] = time.perf_counter() - wall, seconds() - cpu
    return result


def cpu_seconds(worker: ScoringWorker, task: int) -> float:
    return time.process_time()


def worker_seconds(executor: RayWorkers[ScoringWorker]) -> float:
    """Of the worker and of this process, which hands out the work."""
    ((_, seconds),) = executor.run(cpu_seconds, [0], "clock")
    return seconds + time.process_time()


def version() -> str:
    import ray

    return str(ray.__version__)


if __name__ == "__main__":
    main()
