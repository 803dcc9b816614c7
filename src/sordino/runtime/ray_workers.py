"""Workers as actors of a Ray cluster. Each holds what `open_state` returns, a loaded model for instance.

Plain actors and `ray.wait`: a task of a worker that is lost (killed, its node gone, out of memory, a broken device) is
tried on another, and a new worker takes the lost one's place. A task that loses three is given up. Mistakes, the
user's and ours, are raised where they are met. Tasks and results are values, so that doing one twice does no harm.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sordino.errors import ArtifactError, FamilyError, RecipeError, SordinoError, is_out_of_memory, reason
from sordino.runtime import environment
from sordino.runtime.progress import note

State = TypeVar("State")
Task = TypeVar("Task")
Result = TypeVar("Result")
TRIES = 3  # workers that a task, or opening the state, may lose
PATIENCE = 60  # seconds between looks at a cluster that has not answered
KEPT = "What is done is kept: run the same command again."


@dataclass(frozen=True)
class Needs:
    """What one worker takes of the cluster."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{_counted(self.cpus, 'core')}" + (f" and {_counted(self.gpus, 'GPU')}" if self.gpus else "")

    def fit(self, resources: dict[str, float]) -> int:
        """How many such workers a node has room for."""
        cpus = int(resources.get("CPU", 0) // self.cpus)
        return min(cpus, int(resources.get("GPU", 0) // self.gpus)) if self.gpus else cpus


@dataclass(frozen=True)
class Lost:
    """A worker that is of no more use. why: in words; memory: whether it ran out of memory."""

    why: str
    memory: bool = False


class Actor:
    """What runs in a worker's process."""

    def __init__(self) -> None:
        environment.prepare()  # before a state or a task brings torch in
        environment.quiet_libraries()
        self.state: Any = None

    def open(self, open_state: Callable[[], Any]) -> Lost | None:
        """Begin. Raises what `open_state` raises."""
        try:
            self.state = open_state()
        except Exception as error:
            if is_broken(error):
                return Lost(_one_line(error), is_out_of_memory(error))
            raise
        return None

    def ping(self) -> None:
        """Answered by a worker that is there."""

    def run(self, work: Callable[[Any, Any], Any], task: Any) -> Any:
        """The result, or Lost where nothing more can be expected of this process."""
        try:
            return work(self.state, task)
        except Exception as error:
            if is_broken(error):
                return Lost(_one_line(error), is_out_of_memory(error))
            raise


def is_broken(error: Exception) -> bool:
    """Whether a process must end after this: its memory is full, or its device no longer answers."""
    return is_out_of_memory(error) or type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def require() -> None:
    """Raise FamilyError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise FamilyError("resources.executor: ray needs Ray, which is not installed.", "pip install 'sordino[ray]'")


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or at $RAY_ADDRESS; without either, one of this machine begins, and ends with this
    process. Does nothing where this process has joined one.

    Raises FamilyError where Ray is not installed, RecipeError where no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else workers without a GPU warn of a change
    require()
    import ray

    if ray.is_initialized():
        return
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    ended_by = signal.getsignal(signal.SIGTERM)
    try:
        dashboard = False if place == "local" else None
        ray.init(address=place, include_dashboard=dashboard, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # among them bare ones, where a machine is too slow to start
        raise RecipeError(
            f"resources.ray_address: no Ray cluster could be joined at {place} ({reason(error)}).",
            "Start one with `ray start --head`, or leave ray_address out.",
        ) from error
    finally:
        signal.signal(signal.SIGTERM, ended_by)  # Ray's own exits without a word


def nodes() -> list[dict[str, float]]:
    """Resources of the cluster's nodes that are alive: CPU, GPU, ..."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass
class RayWorkers(Generic[State]):
    """Executor of a cluster. Raises RecipeError where it has no room for so many workers."""

    open_state: Callable[[], State]
    workers: int
    needs: Needs
    device_type: str
    starting: dict[Any, Any] = field(default_factory=dict)  # reference to its beginning, or a ping -> actor
    idle: deque[Any] = field(default_factory=deque)
    actors: list[Any] = field(default_factory=list)  # all of them
    failed_starts: int = 0

    def __enter__(self) -> RayWorkers[State]:
        room = sum(map(self.needs.fit, nodes()))
        if room < self.workers:
            raise RecipeError(
                f"resources.workers: {self.workers} workers of {self.needs} each, but the cluster has room for {room}.",
                "Ask for fewer, or wait until its nodes have joined.",
            )
        for _ in range(self.workers):
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        while self.actors:
            self._drop(self.actors[-1])
        self.idle.clear()
        self.starting.clear()

    def run(
        self, work: Callable[[State, Task], Result], tasks: Iterable[Task], label: str
    ) -> Iterator[tuple[int, Result]]:
        import ray

        source, exhausted = enumerate(tasks), False
        again: deque[tuple[int, Task]] = deque()
        running: dict[Any, tuple[Any, tuple[int, Task]]] = {}
        losses: Counter[int] = Counter()
        try:
            while True:
                while self.idle and (again or not exhausted):
                    job = again.popleft() if again else next(source, None)
                    if job is None:
                        exhausted = True
                        break
                    actor = self.idle.popleft()
                    running[actor.run.remote(work, job[1])] = actor, job
                if exhausted and not running and not again:
                    return
                ready, _ = ray.wait([*running, *self.starting], timeout=PATIENCE)
                if not ready and not running:
                    self._refuse_empty_cluster()
                for reference in ready:
                    if reference in self.starting:
                        self._started(reference)
                        continue
                    actor, job = running.pop(reference)
                    outcome = _outcome(reference)
                    if not isinstance(outcome, Lost):
                        self.idle.append(actor)
                        yield job[0], outcome
                        continue
                    losses[job[0]] += 1
                    self._replace(actor)
                    if losses[job[0]] == TRIES:
                        raise _given_up(f"{label} {job[0] + 1}", outcome)
                    note(f"  a worker was lost ({outcome.why}); {label} {job[0] + 1} is tried by another")
                    again.append(job)
        finally:
            for actor, _ in running.values():  # what they still do is of no use to anybody
                self._drop(actor)

    def _start(self) -> None:
        import ray

        options = {"num_cpus": self.needs.cpus, "num_gpus": self.needs.gpus, "max_restarts": 0}
        actor = ray.remote(Actor).options(**options).remote()
        self.actors.append(actor)
        self.starting[actor.open.remote(self.open_state)] = actor

    def _drop(self, actor: Any) -> None:
        import ray

        self.actors.remove(actor)
        ray.kill(actor, no_restart=True)

    def _replace(self, actor: Any) -> None:
        """Start another in the place of a worker that is lost, and ask the idle ones whether they are still there:
        those of a lost node are not."""
        self._drop(actor)
        self._start()
        while self.idle:
            other = self.idle.popleft()
            self.starting[other.ping.remote()] = other

    def _started(self, reference: Any) -> None:
        """Take in a worker that has begun, or start another where it was lost. Raises what opening raised."""
        actor = self.starting.pop(reference)
        outcome = _outcome(reference)
        if not isinstance(outcome, Lost):
            self.failed_starts = 0
            self.idle.append(actor)
            return
        self._drop(actor)
        self.failed_starts += 1
        if self.failed_starts == TRIES:
            raise _given_up("opening the model", outcome)
        note(f"  a worker was lost while it began ({outcome.why})")
        self._start()

    def _refuse_empty_cluster(self) -> None:
        """Raise ArtifactError where no worker is at work and no node could hold one."""
        if not any(map(self.needs.fit, nodes())):
            raise ArtifactError(f"no node of the cluster has room for a worker of {self.needs} any more.", KEPT)
        note("  no worker has begun yet: the cluster is opening models, or busy with other work")


def _outcome(reference: Any) -> Any:
    """A result, or Lost. Raises the worker's exception as its own."""
    import ray
    from ray import exceptions

    gone = (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
    )
    try:
        return ray.get(reference)
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, SordinoError):
            raise cause from None
        raise
    except gone as error:
        if "import" in str(error) and "Error" in str(error) and "Module" in str(error):
            raise FamilyError(
                f"a worker cannot import sordino ({reason(error)}).", "Install the same environment on every node."
            ) from error
        return _lost(error)


def _lost(error: Exception) -> Lost:
    """What Ray's long messages come to."""
    from ray import exceptions

    told = str(error).lower()
    if isinstance(error, exceptions.OutOfMemoryError):
        return Lost("its machine ran out of memory", True)
    if isinstance(error, exceptions.NodeDiedError) or "node has died" in told or "node is dead" in told:
        return Lost("its node is gone")
    return Lost("its process ended")


def _given_up(what: str, last: Lost) -> SordinoError | MemoryError:
    if last.memory:
        return MemoryError(f"{what}: {last.why}")
    return ArtifactError(
        f"{what} lost {TRIES} workers one after the other; of the last, {last.why}.",
        f"The cluster's logs say why (docs/cluster.md). {KEPT}",
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
