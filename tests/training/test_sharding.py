"""Two processes train as one does; what they save goes on in two, and in one. One start of both serves all tests."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sordino import cli
from sordino.config.schema import TrainSection
from sordino.models.speech import SpeechModel
from sordino.runtime.world import World
from sordino.training import resume, sharding, trainer
from sordino.training.collate import Example
from tests.data import sounds
from tests.stages import runs
from tests.tiny import QUESTION, clip, fresh, is_tied
from tests.training import spread

ROOT = Path(__file__).parents[2]


class Both:
    """What two processes left, and what one does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out: dict[str, Any] = json.loads((folder / "out.json").read_text())
        self.ones: dict[str, Any] = {}

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def one(self, name: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        if name not in self.ones:
            self.ones[name] = spread.run(self.folder, name, self.folder / f"alone-{name}")
        return self.ones[name]


def write_recipe(folder: Path) -> None:
    """A corpus, and a recipe that trains in two processes; the runs `straight` and `killed` have their data."""
    corpus = runs.write_corpus(folder / "corpus")
    recipe = {
        "name": "one", "out": str(folder / "runs"), "model": str(folder / "model"), "device": "cpu",
        "data": {"path": str(corpus)}, "resources": {"devices": 2},
        "finetune": {"max_steps": 8, "lr": 1e-3, "checkpoint_steps": 1, "freeze": ["encoder"]},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["prepare", str(folder / "recipe.yaml")]) == 0
    for name in ("straight", "killed"):
        shutil.copytree(folder / "runs/one", folder / "runs" / name)


def write_broken(source: Path, directory: Path) -> None:
    """A model whose last row of the head, which the last process has, holds a NaN."""
    shutil.copytree(source, directory)
    file = directory / "model.safetensors"
    weights = load_file(file)
    weights[spread.BROKEN][-1, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})


@pytest.fixture(scope="module")
def both(pico_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("both")
    shutil.copytree(pico_dir("qwen2_audio"), folder / "model")
    shutil.copytree(pico_dir("gemma4"), folder / "tied-model")
    write_broken(folder / "model", folder / "broken-model")
    for i in range(len(spread.ANSWERS)):
        sounds.save(folder / f"{i}.wav", clip(i, 0.3 + 0.13 * i), subtype="FLOAT")
    write_recipe(folder)
    spread.run(folder, "plain", folder / "one-plain")  # its resume point goes on in two processes
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(
        [*launcher, "-m", "tests.training.spread", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Both(folder)


@pytest.mark.parametrize("name", ["plain", "parts", "encoder-frozen", "adapter", "tied"])
def test_losses_of_two_processes_are_those_of_one(both: Both, name: str) -> None:
    log, weights = both.one(name)
    two = both.out[name]
    assert len(log) == len(two) == spread.SECTIONS[name].max_steps
    for row, other in zip(log, two, strict=True):
        assert row.keys() == other.keys()
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-6)
        assert other.get("dev_loss", 0) == pytest.approx(row.get("dev_loss", 0), rel=1e-6)
        assert other["lr"] == row["lr"]
    trained = both.weights(name)
    assert trained.keys() == weights.keys()
    assert max(float((trained[n] - weights[n]).abs().max()) for n in weights) < 0.05 * spread.SECTIONS[name].lr


@pytest.mark.parametrize("name", ["plain", "encoder-frozen", "tied"])
def test_what_is_read_in_rows_trains_to_the_bytes_of_what_is_read_whole(both: Both, name: str) -> None:
    """Gemma's head is its embedding, and scales and rotary frequencies are in no file."""
    assert both.out[name] == both.out[f"{name}-whole"]
    rows, whole = both.weights(name), both.weights(f"{name}-whole")
    assert rows.keys() == whole.keys()
    assert all(torch.equal(rows[key], whole[key]) for key in whole)


def test_a_weight_of_one_process_that_is_no_number_is_refused_by_both(both: Both) -> None:
    assert both.out["broken"] == [2.0]


def test_autocast_in_two_processes_is_that_of_one_which_runs_both_shares(
    both: Both, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights are float32; products are rounded to bfloat16, in sums over the clips that run together. So one process
    takes the two shares of a step one after the other: with all clips at once its fifth loss is 0.3 % another. From
    the second step on a weight that float32 leaves 1e-8 apart may be rounded to another bfloat16, on some processors.
    """
    name = "mixed-bfloat16"
    section, dealt = spread.SECTIONS[name], trainer._shares
    monkeypatch.setitem(spread.SECTIONS, name, dataclasses.replace(section, accumulate=2))

    def both_shares(chosen: list[Example], *_: Any) -> Iterator[trainer.Share]:
        for rank in (0, 1):
            yield from (share for share in dealt(chosen, section.batch_size, World(rank, 2)) if share[1])

    monkeypatch.setattr(trainer, "_shares", both_shares)
    log, _ = spread.run(both.folder, name, tmp_path / "state")
    assert {tensor.dtype for tensor in both.weights(name).values()} == {torch.float32}
    for row, one, plain in zip(both.out[name], log, both.out["plain"], strict=True):
        assert row["loss"] == pytest.approx(one["loss"], rel=1e-6 if row["step"] == 1 else 1e-3)
        assert row["loss"] == pytest.approx(plain["loss"], rel=0.02)
        assert row["loss"] != plain["loss"]


def test_a_step_with_a_clip_for_one_process_alone_is_among_them() -> None:
    steps = trainer.plan_steps([1.0] * len(spread.ANSWERS), spread.PLAIN, spread.SEED)
    assert min(map(len, steps)) == 1
    shares = [list(trainer._shares([0], 4, World(rank, 2))) for rank in (0, 1)]  # type: ignore[list-item]
    assert shares == [[([0], 1)], [([0], 0)]]


def test_every_clip_of_a_step_is_run_by_one_process_once() -> None:
    chosen: list[Any] = list(range(11))
    runs = [list(trainer._shares(chosen, 4, World(rank, 3))) for rank in range(3)]
    assert len({len(shares) for shares in runs}) == 1  # as many forward passes everywhere
    assert len({tuple(len(own) for own, _ in shares) for shares in runs}) == 1  # of as many clips
    assert sorted(clip for shares in runs for own, counted in shares for clip in own[:counted]) == chosen


@pytest.mark.parametrize(("count", "size"), [(8, 2), (7, 2), (5, 4), (1, 3), (9, 1)])
def test_rows_are_dealt_as_torch_deals_them(count: int, size: int) -> None:
    rows = list(range(count))
    dealt = [rows[slice(*sharding._rows(count, World(rank, size)))] for rank in range(size)]
    chunks = [chunk.tolist() for chunk in torch.arange(count).chunk(size)]
    assert dealt == chunks + [[]] * (size - len(chunks))


def test_what_two_processes_save_they_go_on_from_to_the_same_bytes(both: Both) -> None:
    (point,) = resume.checkpoints(both.folder / "two-plain")
    assert [file.name for file in sorted(point.iterdir())] == [
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
        "state.json",
    ]
    assert both.out["plain-resumed"] == both.out["plain"]
    straight, resumed = both.weights("plain"), both.weights("plain-resumed")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_what_two_processes_save_one_goes_on_from(both: Both, tmp_path: Path) -> None:
    shutil.copytree(both.folder / "two-plain", tmp_path / "state")
    log, weights = spread.run(both.folder, "plain", tmp_path / "state")
    assert log[:4] == both.out["plain"][:4]
    assert log[4]["loss"] == pytest.approx(both.out["plain"][4]["loss"], rel=1e-6)
    straight = both.weights("plain")
    assert max(float((straight[n] - weights[n]).abs().max()) for n in weights) < 0.05 * spread.PLAIN.lr


def test_what_one_process_saves_two_go_on_from(both: Both) -> None:
    (point,) = resume.checkpoints(both.folder / "one-plain")
    log = json.loads((point / "state.json").read_text())["log"]
    assert both.out["plain-from-one"][:4] == log
    assert both.out["plain-from-one"][4]["loss"] == pytest.approx(both.out["plain"][4]["loss"], rel=1e-6)


def test_sharded_bfloat16_keeps_float32_weights(both: Both) -> None:
    """Whole modules compute in bfloat16: near the float32 losses, and one process does it, too."""
    name = "sharded-bfloat16"
    (point,) = resume.checkpoints(both.folder / f"two-{name}")
    with safe_open(point / "shard-00001-model-00001-of-00001.safetensors", "pt") as stored:
        kinds = {stored.get_tensor(key).dtype for key in stored.keys()}  # noqa: SIM118  # it is no dictionary
    assert kinds == {torch.float32}
    for row, plain, one in zip(both.out[name], both.out["plain"], both.one(name)[0], strict=True):
        assert row["loss"] == pytest.approx(plain["loss"], rel=0.02)
        assert row["loss"] != plain["loss"]
        assert one["loss"] == pytest.approx(row["loss"], rel=0.01)
    assert {tensor.dtype for tensor in both.one(name)[1].values()} == {torch.float32}


def test_bfloat16_is_rounded_stochastically_in_shards(both: Both) -> None:
    weights = both.weights("bfloat16")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert both.out["bfloat16"][-1]["loss"] < both.out["bfloat16"][0]["loss"]


def test_an_adapter_is_the_same_in_all_processes_and_saved_by_one(both: Both) -> None:
    assert both.out["adapters-agree"]
    (point,) = resume.checkpoints(both.folder / "two-adapter")
    assert sorted(file.name for file in point.iterdir()) == ["state.json", "state.safetensors"]


def test_a_loss_that_one_process_cannot_count_ends_both(both: Both) -> None:
    assert both.out["refused"] == "plain: the loss became nan at step 1. Lower lr or raise warmup_ratio."


@pytest.mark.parametrize("family", ["gemma4", "qwen2_5_omni"])
def test_a_sharded_model_is_the_model_of_its_family(
    pico: Callable[[str], SpeechModel], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, in a world of one, tied weights and all; and what trained it leaves nothing behind in it."""
    results = []
    for name in ("plain", "sharded"):
        own = fresh(pico(family))
        prompt = own.family.chat.render(own.processor, QUESTION)
        file = sounds.save(tmp_path / "a.wav", clip(1, 0.6), subtype="FLOAT")
        pairs = [Example(sounds.clip("a", file, seconds=0.6), own.answer_ids("Guten Tag."))]
        section = TrainSection(batch_size=1, max_steps=2, lr=1e-3)
        if name == "sharded":
            monkeypatch.setattr(trainer, "spread", lambda step, *_: sharding.shard(step, "float32", World()))
        train = trainer.train
        log = train(own, pairs, section, prompt=prompt, seed=1, state=tmp_path / name, label="test", dev=pairs).log
        results.append((log, own))
    (log, plain), (other, sharded) = results
    assert other == log
    assert is_tied(sharded) == is_tied(plain) == (family == "gemma4")
    weights = sharded.model.state_dict()
    assert weights.keys() == plain.model.state_dict().keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in plain.model.state_dict().items())
    assert [type(m) for m in sharded.model.modules()] == [type(m) for m in plain.model.modules()]


def workers(parent: int) -> dict[int, int]:
    """Rank -> process, of the workers that a process has started."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [word.partition(b"=")[2] for word in words if word.startswith(b"RANK=")]
        found |= {int(rank): int(child) for rank in ranks}
    return found


def killed(folder: Path, ranks: tuple[int, ...], after: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says whose workers are killed as soon as a resume point is there."""
    point = folder / "runs/killed/20-teacher.partial/.state/train" / after
    over = threading.Event()

    def kill() -> None:
        while not point.exists() and not over.wait(0.005):
            pass
        for rank, process in workers(os.getpid()).items():
            if rank in ranks:
                os.kill(process, signal.SIGKILL)

    watch = threading.Thread(target=kill)
    watch.start()
    code = cli.main(["finetune", str(folder / "recipe.yaml"), "name=killed"])
    over.set()
    watch.join()
    assert code == 2
    assert point.exists() or len(resume.checkpoints(point.parent)) == 1
    return capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="workers are looked up in /proc")
def test_killed_processes_go_on_to_the_same_bytes(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    """One of them, then both; and the same as where the user's own torchrun started the command."""
    for ranks, after in (((1,), "step-00000001"), ((0, 1), "step-00000003")):
        said = killed(both.folder, ranks, after, capsys)
        assert "sordino: finetune: a process of the training was ended by signal 9." in said
        assert "the same command goes on from there." in said
        assert "Traceback" not in said
    assert cli.main(["finetune", str(both.folder / "recipe.yaml"), "name=killed"]) == 0
    assert "step 3 of 8" not in capsys.readouterr().err
    straight, resumed = (both.folder / "runs" / name / "20-teacher" for name in ("straight", "killed"))
    for file in ("model.safetensors", "config.json", "log.jsonl"):
        assert (straight / file).read_bytes() == (resumed / file).read_bytes()
    record = json.loads((resumed / "stage.json").read_text())
    assert record["devices"] == 2
    assert record["trained_parameters"] == json.loads((straight / "stage.json").read_text())["trained_parameters"]


def test_nothing_on_disk_is_pickled(both: Both) -> None:
    inside = (file.relative_to(both.folder) for file in both.folder.rglob("*") if file.is_file())
    given = ("model", "tied-model", "broken-model", "corpus", "runs")
    kinds = {file.suffix for file in inside if file.parts[0] not in given}
    assert kinds == {".wav", ".json", ".safetensors", ".yaml"}
