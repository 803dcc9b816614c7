"""The workers of a stage on a cluster: what they take of it, what they open, and whether they are fit for the job.

A worker is told where the model lies and not handed it. Before it opens anything it compares its environment with that
of the process that asks, and looks for a file that this process wrote: results of other versions would be others, and
a run that workers do not see cannot be worked on.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sordino.config.schema import Recipe
from sordino.errors import ArtifactError
from sordino.pipeline import artifact
from sordino.pipeline.device import device_type
from sordino.pipeline.model_source import ModelSource
from sordino.pipeline.stage import Job
from sordino.runtime import ray_workers
from sordino.runtime.progress import note
from sordino.runtime.ray_workers import Needs, RayWorkers

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel
    from sordino.models.worker import ModelWorker

    Worker = TypeVar("Worker", bound=ModelWorker)
else:
    Worker = TypeVar("Worker")
State = TypeVar("State")
SHARED = "Work in a directory, and with an `out`, that all nodes share."
TOKEN = "cluster-token"  # in the stage's state


@dataclass(frozen=True)
class Place:
    """What a worker must find. directory: that paths are relative to; token: a file in the run, and what it holds;
    cpus: threads of torch; device: cpu or cuda."""

    versions: Mapping[str, str]
    directory: Path
    token: tuple[Path, str]
    cpus: int
    device: str

    def enter(self) -> None:
        """Make this process ready to work. Raises ArtifactError where it is not fit to."""
        host = socket.gethostname()
        here = artifact.versions()
        other = {name: here.get(name) for name, version in self.versions.items() if here.get(name) != version}
        if other:
            words = ", ".join(f"{name} {version}, not {self.versions[name]}" for name, version in other.items())
            raise ArtifactError(
                f"a worker on {host} has another environment: {words}.", "Install the same versions on every node."
            )
        file, content = self.token
        if not self.directory.is_dir():
            raise ArtifactError(f"a worker on {host} does not see {self.directory}.", SHARED)
        os.chdir(self.directory)
        if not file.is_file() or file.read_text(encoding="utf-8") != content:
            raise ArtifactError(f"a worker on {host} does not see {file}.", SHARED)
        import torch

        torch.set_num_threads(self.cpus)
        if self.device == "cuda" and device_type("auto") == "cpu":
            raise ArtifactError(
                f"a worker on {host} was given a GPU that its torch does not see.", "Install a torch built for it."
            )


def on_cluster(recipe: Recipe) -> bool:
    """Whether stages hand out their work to a cluster."""
    return recipe.resources.executor == "ray"


def device_on(recipe: Recipe) -> str:
    """cpu or cuda, where workers run: on GPUs, unless the cluster has none or the recipe wants none."""
    gpus = any(node.get("GPU", 0) >= 1 for node in ray_workers.nodes())
    return "cuda" if recipe.device == "cuda" or (recipe.device == "auto" and gpus) else "cpu"


@contextmanager
def open_workers(job: Job, open_state: Callable[[str], State]) -> Iterator[RayWorkers[State]]:
    """Workers of the recipe's cluster for the length of a stage. open_state: gets the device, cpu or cuda.

    Raises RecipeError, FamilyError where there is no cluster, or no room on it.
    """
    resources = job.recipe.resources
    ray_workers.connect(resources.ray_address)
    device = device_on(job.recipe)
    needs = Needs(resources.worker_cpus, 1 if device == "cuda" else 0)
    count = resources.workers or max(1, sum(map(needs.fit, ray_workers.nodes())))
    file, content = job.state.absolute() / TOKEN, secrets.token_hex()
    file.write_text(content, encoding="utf-8")
    place = Place(artifact.versions(), Path.cwd(), (file, content), needs.cpus, device)
    job.record |= {"device": device, "workers": count}
    note(f"  {count} workers of {needs} each")
    with RayWorkers(partial(_enter, place, open_state), count, needs, device) as workers:
        yield workers


@contextmanager
def model_workers(job: Job, source: ModelSource, kind: type[Worker]) -> Iterator[RayWorkers[Worker]]:
    """Workers that each hold a model of the chain."""
    with open_workers(job, partial(_open_model, source, kind, job.layout.cache.absolute())) as workers:
        yield workers


def without_weights(source: ModelSource, device: str) -> SpeechModel:
    """A model's shape, words and prompts, for the process that hands out the work. device: the workers'."""
    import torch

    from sordino.models import stored
    from sordino.models.devices import default_dtype

    asked = source.dtype
    dtype = asked if isinstance(asked, torch.dtype) else default_dtype(asked, torch.device(device))
    return stored.without_weights(source.path, dtype, source.revision)


def _enter(place: Place, open_state: Callable[[str], State]) -> State:
    place.enter()
    return open_state(place.device)


def _open_model(source: ModelSource, kind: type[Worker], cache: Path, device: str) -> Worker:
    return kind(dataclasses.replace(source, device=device).open(), cache)
