"""Workers of a Ray cluster: results, losses, mistakes, and clusters without room. Several nodes on one machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sordino.errors import ArtifactError, DataError, FamilyError, RecipeError
from sordino.runtime import ray_workers
from sordino.runtime.executor import in_order
from sordino.runtime.ray_workers import Needs, RayWorkers

pytestmark = pytest.mark.ray
ONE = Needs(1, 0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Room for two workers on each of two nodes."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=2)
    before = signal.getsignal(signal.SIGTERM)
    ray_workers.connect(made.address)
    assert signal.getsignal(signal.SIGTERM) is before
    yield made
    import ray

    ray.shutdown()
    made.shutdown()


def opened() -> str:
    return "state"


def echo(state: str, task: int) -> tuple[str, int, int]:
    return state, task, os.getpid()


def die_at_first(state: str, task: tuple[int, Path]) -> int:
    """Task 1 ends its process, unless it did so before."""
    number, marks = task
    if number == 1 and not (marks / "died").exists():
        (marks / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_dies(state: str, task: int) -> None:
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory(state: str, task: Path) -> int:
    """Out of memory in the first process that it is tried in."""
    mark = task / "process"
    if not mark.exists():
        mark.write_text(str(os.getpid()))
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")
    return int(mark.read_text() != str(os.getpid()))


def mistaken(state: str, task: int) -> None:
    raise DataError(f"clip {task} cannot be read.", "Leave it out.")


def bug(state: str, task: int) -> None:
    raise KeyError(f"no {task}")


def cannot_open() -> str:
    raise ArtifactError("a worker has another environment.", "Install the same.")


def dies_while_opening() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def workers(count: int, open_state: object = opened) -> RayWorkers[str]:
    return RayWorkers(open_state, count, ONE, "cpu")  # type: ignore[arg-type]


@pytest.mark.usefixtures("cluster")
def test_every_task_is_done_once_by_several_processes() -> None:
    with workers(2) as executor:
        results = in_order(executor.run(echo, range(20), "task"))
        assert [(state, task) for state, task, _ in results] == [("state", i) for i in range(20)]
        again = in_order(executor.run(echo, range(3), "task"))
        assert {process for *_, process in again} <= {process for *_, process in results}
        assert list(executor.run(echo, [], "task")) == []
    assert 1 <= len({process for *_, process in results}) <= 2


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_s_task_is_done_by_another(tmp_path: Path) -> None:
    with workers(2) as executor:
        tasks = [(i, tmp_path) for i in range(6)]
        assert in_order(executor.run(die_at_first, tasks, "task")) == [0, 1, 4, 9, 16, 25]
        assert len(executor.actors) == 2
    assert (tmp_path / "died").exists()


@pytest.mark.usefixtures("cluster")
def test_a_task_that_loses_three_workers_is_named_and_given_up() -> None:
    with workers(1) as executor, pytest.raises(ArtifactError, match="batch 3 lost 3 workers one after the other"):
        list(executor.run(always_dies, range(4), "batch"))


@pytest.mark.usefixtures("cluster")
def test_a_worker_out_of_memory_is_replaced(tmp_path: Path) -> None:
    with workers(1) as executor:
        assert in_order(executor.run(out_of_memory, [tmp_path], "task")) == [1]


@pytest.mark.usefixtures("cluster")
def test_mistakes_end_the_work_with_their_own_words() -> None:
    with workers(1) as executor:
        with pytest.raises(DataError) as told:
            list(executor.run(mistaken, range(3), "task"))
        assert (told.value.problem, told.value.remedy) == ("clip 0 cannot be read.", "Leave it out.")
    with workers(1) as executor, pytest.raises(KeyError, match="no 0"):
        list(executor.run(bug, range(3), "task"))
    with workers(1, cannot_open) as executor, pytest.raises(ArtifactError, match="another environment"):
        list(executor.run(echo, range(3), "task"))
    with workers(1, dies_while_opening) as executor, pytest.raises(ArtifactError, match="opening the model lost 3"):
        list(executor.run(echo, range(3), "task"))


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_there_is_room_for() -> None:
    with pytest.raises(RecipeError, match=r"5 workers of 1 core each, but the cluster has room for 4"), workers(5):
        pass
    with pytest.raises(RecipeError, match="2 cores and 1 GPU each, but the cluster has room for 0"):
        RayWorkers(opened, 1, Needs(2, 1), "cuda").__enter__()


def dies_with_its_node(state: str, task: tuple[int, Path]) -> int:
    """On the node that is to be taken away it waits for that; elsewhere for somebody to wait there."""
    import ray

    number, marks = task
    if ray.get_runtime_context().get_node_id() == (marks / "node").read_text():
        (marks / "reached").touch()
        time.sleep(600)
    while not (marks / "reached").exists():
        time.sleep(0.05)
    return number


def test_a_node_that_is_taken_away_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    """The last test of the module: the node is gone afterwards."""
    node = next(iter(cluster.worker_nodes))
    (tmp_path / "node").write_text(node.node_id)

    def take_away() -> None:
        while not (tmp_path / "reached").exists():
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    with workers(4) as executor:
        thread = threading.Thread(target=take_away, daemon=True)
        thread.start()
        results = in_order(executor.run(dies_with_its_node, [(i, tmp_path) for i in range(12)], "task"))
        thread.join(60)
    assert results == list(range(12))
    for _ in range(600):  # until the cluster has noticed
        if sum(map(ONE.fit, ray_workers.nodes())) == 2:
            return
        time.sleep(0.1)
    pytest.fail("the node is still there")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FamilyError) as told:
        ray_workers.connect(None)
    assert told.value.remedy == "pip install 'sordino[ray]'"
