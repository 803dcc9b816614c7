"""rank, pseudolabel and the teacher's probabilities by a Ray cluster: the bytes of one process, whatever dies; and
clusters that cannot be used.

The workers are real, on two nodes of this machine. They are started once, since each imports torch: a test takes as
many of them as it asks for.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sordino.pipeline import artifact, pseudolabels, teacher_logits, workers
from sordino.pipeline.model_source import ModelSource
from sordino.pruning import scoring_worker
from sordino.pruning.scoring_worker import ScoringWorker
from sordino.runtime import ray_workers
from sordino.runtime.ray_workers import Needs, RayWorkers
from tests.stages.runs import Made, answer, refusal, run, stage_json

pytestmark = pytest.mark.ray
MADE = "10-data", "20-teacher"
RANKING, PSEUDO = "30-ranking", "50-pseudo"
BYTES = {
    "rank": ("30-ranking/ranking.json", "30-ranking/trials.jsonl"),
    "pseudolabel": ("50-pseudo/candidates.jsonl", "50-pseudo/train.jsonl"),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Room for two workers on one node and three on the other: one more than are kept."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=3)
    ray_workers.connect(made.address)
    yield made
    import ray

    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def alone(made: Made) -> Path:
    """A run by one process as far as the tests need it."""
    recipe = made.recipe(made.root / "alone")
    for stage in ("prepare", "finetune", "rank", "pseudolabel"):
        run(stage, recipe)
    return made.root / "alone/runs/run"


@pytest.fixture(scope="module")
def crew(cluster: Any, alone: Path) -> Iterator[RayWorkers[ScoringWorker]]:
    """Four workers with the teacher."""
    source = ModelSource(str(alone / "20-teacher"), None, "cpu", "float32", None)
    cache = alone / "cache"
    with RayWorkers(
        partial(workers._open_model, source, ScoringWorker, cache, "cpu"), 4, Needs(1, 0), "cpu"
    ) as all_four:
        yield all_four


@pytest.fixture
def taking(crew: RayWorkers[ScoringWorker], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the stages take so many of the workers that are there, and keep them."""

    def take(count: int) -> None:
        @contextmanager
        def ready(*_: object) -> Iterator[RayWorkers[Any]]:
            list(crew.run(nothing, range(8), "warm-up"))  # until those that are starting have begun
            while len(crew.idle) < count:
                list(crew.run(nothing, range(8), "warm-up"))
            others = [crew.idle.pop() for _ in range(len(crew.idle) - count)]
            part = dataclasses.replace(crew, workers=count, idle=deque(crew.idle), starting={}, actors=list(crew.idle))
            yield part
            crew.idle = deque([*part.idle, *others])
            crew.starting |= part.starting
            crew.actors = [*part.actors, *others, *crew.starting.values()]

        monkeypatch.setattr(workers, "model_workers", ready)

    return take


def nothing(worker: object, task: int) -> None:
    time.sleep(0.01)


@pytest.fixture
def recipe(made: Made, alone: Path, tmp_path: Path) -> Path:
    """A recipe on Ray, beside the data and the teacher of the run by one process."""
    for name in MADE:
        shutil.copytree(alone / name, tmp_path / "runs/run" / name)
    return made.recipe(tmp_path, {"resources": {"executor": "ray"}})


def assert_same_bytes(alone: Path, directory: Path, stage: str) -> None:
    for name in BYTES[stage]:
        assert (directory / "runs/run" / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_workers_gives_the_bytes_of_one_process(
    count: int, taking: Callable[[int], None], alone: Path, recipe: Path, tmp_path: Path
) -> None:
    taking(count)
    for stage in ("rank", "pseudolabel"):
        run(stage, recipe)
        assert_same_bytes(alone, tmp_path, stage)
    assert stage_json(tmp_path / "runs/run" / RANKING)["hash"] == stage_json(alone / RANKING)["hash"]


def die_once(work: Callable[[Any, Any], Any], mark: Path, worker: Any, task: Any) -> Any:
    """The worker that gets to the second task of a stage is killed there; it leaves a mark."""
    try:
        mark.open("x").close()
    except FileExistsError:
        return work(worker, task)
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def test_a_worker_killed_in_the_middle_changes_nothing(
    taking: Callable[[int], None], alone: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taking(2)
    monkeypatch.setattr(scoring_worker, "translate", partial(die_once, scoring_worker.translate, tmp_path / "ranking"))
    monkeypatch.setattr(
        pseudolabels, "translate_batch", partial(die_once, pseudolabels.translate_batch, tmp_path / "labels")
    )
    for stage in ("rank", "pseudolabel"):
        run(stage, recipe)
        assert_same_bytes(alone, tmp_path, stage)
    assert (tmp_path / "ranking").exists() and (tmp_path / "labels").exists()


def test_the_teachers_probabilities_whoever_is_killed(
    taking: Callable[[int], None], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_logits, "SHARD", 6)
    taking(2)
    healed = ["10-data", "20-teacher", "30-ranking", "40-pruned", "50-pseudo"]
    changes: dict[str, Any] = {"distil": {"logits": {"weight": 0.8, "top": 5}}}
    run("distil", made.copied(tmp_path / "one", changes, healed))
    mark = tmp_path / "killed"
    monkeypatch.setattr(teacher_logits, "probabilities", partial(die_once, teacher_logits.probabilities, mark))
    run("distil", made.copied(tmp_path / "ray", changes | {"resources": {"executor": "ray"}}, healed))
    assert mark.exists()
    one, ray = (
        {file.name: file.read_bytes() for file in (tmp_path / name / "runs/run/cache/teacher-logits").rglob("0*")}
        for name in ("one", "ray")
    )
    assert one == ray and len(one) > 1


DRIVER = """
import sys
from sordino.cli import main
from sordino.runtime import files
append = files.append_jsonl
def killed(file, *rows):
    append(file, *rows)
    if file.name in ("found.jsonl", "pseudo.jsonl"):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
files.append_jsonl = killed
main([*sys.argv[1:], "--yes"])
"""


def test_a_killed_driver_goes_on_from_what_is_written(
    cluster: Any, taking: Callable[[int], None], alone: Path, recipe: Path, tmp_path: Path
) -> None:
    words = [str(recipe), f"resources.ray_address={cluster.address}", "resources.workers=1"]
    killed = subprocess.run([sys.executable, "-c", DRIVER, "pseudolabel", *words], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    progress = tmp_path / "runs/run/50-pseudo.partial/.state/pseudo.jsonl"
    assert 0 < len(progress.read_text().splitlines()) < 10  # the first batch
    taking(2)
    run("pseudolabel", recipe)
    assert_same_bytes(alone, tmp_path, "pseudolabel")


def test_finished_work_stays_finished_whoever_did_it(
    alone: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (RANKING, PSEUDO):
        shutil.copytree(alone / name, tmp_path / "runs/run" / name)
    lines = {line["stage"]: line["runs"] for line in answer(capsys, "plan", recipe)["plan"]}
    assert not lines["rank"] and not lines["pseudolabel"]


def place(tmp_path: Path, **changes: Any) -> workers.Place:
    token = tmp_path / "token"
    token.write_text("7")
    given = {
        "versions": artifact.versions(),
        "directory": Path.cwd(),
        "token": (token, "7"),
        "cpus": 1,
        "device": "cpu",
    }
    return workers.Place(**(given | changes))


@pytest.mark.usefixtures("cluster")
def test_workers_that_are_not_fit_for_the_job(tmp_path: Path) -> None:
    """Told by real workers, who compare themselves with what they are sent."""
    other = artifact.versions() | {"torch": "1.0"}
    cases = {
        "another environment: torch ": place(tmp_path, versions=other),
        "does not see /nowhere/token": place(tmp_path, token=(Path("/nowhere/token"), "7")),
        "does not see /nowhere.": place(tmp_path, directory=Path("/nowhere")),
        "a GPU that its torch does not see": place(tmp_path, device="cuda"),
    }
    for words, unfit in cases.items():
        start = partial(workers._enter, unfit, str)
        with (
            RayWorkers(start, 1, Needs(1, 0), "cpu") as executor,
            pytest.raises(workers.ArtifactError, match=words),
        ):
            list(executor.run(nothing, [0], "task"))


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_the_cluster_holds(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, "rank", recipe, "resources.workers=99")
    assert "99 workers of 1 core each, but the cluster has room for 5" in told
    assert not (tmp_path / "runs/run" / RANKING).exists()
