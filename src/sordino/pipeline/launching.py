"""A training spread over the devices of this machine: torchrun's launcher starts a worker for each of them.

The stage runs in the workers (pipeline/worker.py), of which the first one writes; this process waits. A user's own
torchrun or srun starts `sordino` itself several times: then there is nothing to launch, and the stages run together.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.config.dump import to_yaml
from sordino.config.schema import Recipe
from sordino.errors import ArtifactError, RecipeError, SordinoError
from sordino.pipeline.device import device_of
from sordino.pipeline.stage import Job, Stage
from sordino.runtime import progress
from sordino.runtime.environment import THREADS, launched

TRAINING = ("finetune", "distil", "qlora")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
RECIPE = "recipe.yaml"
ERROR = "error-{rank}.json"  # what ended a worker: problem, remedy, whether the user can do something about it


def spreads(stage: str, recipe: Recipe) -> bool:
    """Whether a stage is to run in several processes that must be started first."""
    return stage in TRAINING and recipe.resources.devices > 1 and launched()[1] == 1


def refuse(recipe: Recipe) -> None:
    """Raise RecipeError for more devices than there are, for a launcher that is not there, and for one that started
    another number of processes."""
    devices, started = recipe.resources.devices, launched()[1]
    if started > 1 and devices != started:
        raise RecipeError(
            f"resources.devices: {devices}, but {started} processes were started.", f"Set it to {started}."
        )
    if devices == 1 or not any(getattr(recipe, name) for name in TRAINING):
        return
    device = device_of(recipe.device)
    count = available(device.type)
    if devices > count and started == 1:
        have = f"{count} CPU cores" if device.type == "cpu" else f"{count} {device.type} device{'s'[: count > 1]}"
        raise RecipeError(f"resources.devices: {devices}, but this machine has {have}.", f"Set it to {count} or less.")
    if not has_launcher():
        raise RecipeError(
            "resources.devices: this build of torch has no torch.distributed.run, which starts the processes.",
            "Install torch from PyPI, or set resources.devices to 1.",
        )


def available(device: str) -> int:
    """Accelerators of a kind, or cores of the CPU that this process may use."""
    import torch

    if device == "cpu":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.accelerator.device_count()


def has_launcher() -> bool:
    import torch

    return torch.distributed.is_available() and importlib.util.find_spec("torch.distributed.run") is not None


def tell(stage: str, out: Path | None) -> None:
    """Tell the other processes, where a launcher started some, where a stage works; None: it does not.

    They work on a training, and wait while other stages run in this one.
    """
    if launched()[1] > 1:
        from sordino.runtime.world import current

        current().told(str(out) if out and stage in TRAINING else "")


def follow(stages: Sequence[Stage[Any]], recipe: Recipe, options: Mapping[str, Any]) -> None:
    """What every process but the first does: it works on the stages that the first one tells it of, and writes nothing.

    Raises ArtifactError where the first process ends before it has said so.
    """
    from sordino.runtime.world import current

    with progress.reported_to(None):
        for stage in stages:
            try:
                out = current().told()
            except RuntimeError as error:
                raise ArtifactError("the first process has ended.", "It says why.") from error
            if out:
                stage.run(Job(recipe, Path(out), {}, options), stage.section(recipe))


def run(stage: Stage[Any], recipe: Recipe) -> None:
    """Run a stage in as many workers as the recipe says, and wait for them.

    Raises what a worker raised, and ArtifactError where a worker was killed: what they had finished stays.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = recipe.resources.devices
    progress.note(f"  in {count} processes")
    with tempfile.TemporaryDirectory(prefix="sordino-") as folder:
        (Path(folder) / RECIPE).write_text(to_yaml(recipe), encoding="utf-8")
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=Path(folder).name, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2,
        )  # fmt: skip
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong is told below
        os.environ.update({name: os.environ.get(name, value) for name, value in _threads(recipe, count).items()})
        worker = elastic_launch(config, sys.executable)
        ended: int | None = None
        with _own_handlers():
            try:
                worker("-m", "sordino.pipeline.worker", folder, stage.name)
            except ChildFailedError as error:
                codes = [failure.exitcode for failure in error.failures.values()]
                raise _told(Path(folder), stage.name, codes) from None
            except SignalException as error:  # the workers have been ended
                ended = error.sigval
        if ended is not None:
            signal.raise_signal(ended)


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """The launcher sets handlers of its own, and leaves them."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _threads(recipe: Recipe, count: int) -> dict[str, str]:
    """On a CPU its cores are shared out; each process would take all of them."""
    cpu = device_of(recipe.device).type == "cpu"
    return THREADS | ({"OMP_NUM_THREADS": str(max(1, available("cpu") // count))} if cpu else {})


def _told(folder: Path, stage: str, codes: Sequence[int]) -> Exception:
    """Why the workers ended, of which some may only have lost another: a user's mistake, a signal, a bug of ours.

    codes: of those that failed. The launcher itself ends the others, by SIGTERM.
    """
    files = sorted(folder.glob(ERROR.format(rank="*")), key=lambda file: file.stat().st_mtime_ns)
    answers = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for error in answers:
        if error["users"]:
            return SordinoError(error["problem"], error["remedy"])
    signals = [-code for code in codes if code < 0 and -code != signal.SIGTERM]
    if answers and not signals:
        return RuntimeError(answers[0]["problem"])
    how = f"was ended by signal {signals[0]}" if signals else f"ended with code {codes[0]}"
    return ArtifactError(
        f"{stage}: a process of the training {how}.", "What is done is kept: the same command goes on from there."
    )
