"""Work handed out as values: a task in, its result out.

Who hands out work is the only one that writes results: a worker gets a task and returns a result, and changes nothing
that another worker reads. Workers are threads of this process, or actors on a cluster (ray_workers.py), which each hold
a model of their own.

The products of one clip are too small to share between threads (on 2 cores, 100 clips were encoded in 4.8 s instead of
8.7 s), so that on a CPU several items are worked on at once with few threads each. A result that one thread computes
does not depend on how many cores there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

State_co = TypeVar("State_co", covariant=True)
Task = TypeVar("Task")
Result = TypeVar("Result")
AT_ONCE = 1024  # tasks, where nobody says fewer


class Executor(Protocol[State_co]):
    """Workers that each hold a state, a loaded model for instance, in processes of their own."""

    @property
    def workers(self) -> int:
        """Tasks that are worked on at once."""

    @property
    def device_type(self) -> str:
        """What every worker's model is on: cpu, cuda, ..."""

    def run(
        self, work: Callable[[State_co, Task], Result], tasks: Iterable[Task], label: str
    ) -> Iterator[tuple[int, Result]]:
        """(place of the task, its result), in the order in which they are done.

        work: a function of a module, so that it can be sent; tasks: taken one by one, as workers are free.
        label: what a task is, for people. The first exception ends it, and is raised.
        """


def in_order(results: Iterable[tuple[int, Result]]) -> list[Result]:
    """Results of `run` in the order of their tasks."""
    return [result for _, result in sorted(results, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Threads:
    """So many threads of this process, which share torch's among them."""

    workers: int

    @classmethod
    def on(cls, device: torch.device, most: int = AT_ONCE) -> Threads:
        """As many as torch has threads, no more than `most`; on an accelerator, which one task fills, a single one."""
        return cls(max(1, min(most, torch.get_num_threads())) if device.type == "cpu" else 1)

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks. The first exception ends it, and is raised."""
        if self.workers == 1:
            yield from map(work, tasks)
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // self.workers))  # of the threads that start from here on
        pool = ThreadPoolExecutor(self.workers)
        try:
            yield from pool.map(work, tasks)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def parallel_map(
    device: torch.device, work: Callable[[Task], Result], tasks: Iterable[Task], most: int = AT_ONCE
) -> Iterator[Result]:
    """Results in the order of the tasks, by the threads that suit the device. most: tasks at once."""
    return Threads.on(device, most).map(work, tasks)


def ahead(
    work: Callable[[Task], Result], tasks: Iterable[Task], most: int, threads: int | None = None
) -> Generator[Result]:
    """Results in the order of the tasks, by threads that are at most so many tasks ahead of who takes them, for what
    is waited for beside an accelerator. The first exception ends it, and is raised in its place; closing the iterator
    ends the threads. threads: as many as that where left out."""
    begun: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads or most, "ahead") as pool:
        try:
            for task in tasks:
                begun.append(pool.submit(work, task))
                if len(begun) > most:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
