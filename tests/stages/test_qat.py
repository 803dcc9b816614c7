"""Training through rounding: what was trained is what is written and exported, to the bit, also after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from sordino.config import recipe as recipes
from sordino.errors import RecipeError
from sordino.models import loading
from sordino.models.speech import SpeechModel
from sordino.quantization import straight_through
from sordino.training import trainer
from tests.stages.runs import recipe_file, run, stage_json, write_corpus

PLAIN: dict[str, Any] = dict.fromkeys(
    ("finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge", "trim", "translate", "evaluate", "report")
)
STEPS = {"max_steps": 2, "lr": 1e-3, "checkpoint_steps": 1, "batch_size": 3}
QAT: dict[str, Any] = STEPS | {"budget_ratio": 0.35, "sensitivity": {"clips": 2}, "mix": {"pseudo": False}}
CHANGES = PLAIN | {"qat": QAT | {"match": STEPS, "freeze": ["encoder"]}, "export": {"formats": ["mixed"]}}


class Trained:
    """A run that trains the base model through rounding; forward: its weights in the last forward pass, by name."""

    def __init__(self, root: Path, pico: Path, changes: dict[str, Any] = CHANGES) -> None:
        self.corpus, self.model = write_corpus(root / "corpus"), pico
        self.recipe = recipe_file(root, pico, self.corpus, changes)
        self.forward: dict[str, Tensor] = {}
        detach = straight_through.detach

        def remember(speech: SpeechModel) -> None:
            for name, module in speech.model.named_modules():
                if parametrize.is_parametrized(module, "weight"):
                    self.forward[f"{name}.weight"] = module.weight.detach().clone()
            embedding = speech.model.get_input_embeddings().weight
            self.forward |= {n: p.detach().clone() for n, p in speech.model.named_parameters() if p is embedding}
            detach(speech)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(straight_through, "detach", remember)
            run("run", self.recipe)
        self.run = root / "runs" / "run"
        self.out = self.run / "64-qat"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pico_dir: Callable[[str], Path]) -> Trained:
    return Trained(tmp_path_factory.mktemp("qat"), pico_dir("qwen2_audio"))


def read_back(directory: Path) -> dict[str, Tensor]:
    speech = loading.load_checkpoint(str(directory), device="cpu", dtype="float32")
    return dict(speech.model.state_dict())


def test_what_is_written_is_what_was_trained(trained: Trained) -> None:
    for directory in (trained.out, trained.run / "70-export/mixed"):
        weights = read_back(directory)
        assert len(trained.forward) > 10
        for name, weight in trained.forward.items():
            assert torch.equal(weights[name], weight), name


def test_the_bytes_are_those_of_the_budget_and_recorded(trained: Trained) -> None:
    audit = json.loads((trained.out / "audit.json").read_text())
    mixed, weighed = audit["mixed"], audit["size"]["weights_bytes"]
    assert weighed <= mixed["budget_bytes"]
    assert weighed == pytest.approx(mixed["predicted_bytes"], rel=0.01)
    assert set(mixed["bits"].values()) - {16}
    assert json.loads((trained.run / "70-export/mixed/audit.json").read_text()) == audit
    record = stage_json(trained.out)
    assert record["match"]["steps"] == record["steps"] == 2


def test_all_of_it_was_trained(trained: Trained) -> None:
    """The encoder by its states, the rest by texts: biases, which nothing rounds, are not those of before."""
    speech = loading.load_checkpoint(str(trained.model), device="cpu", dtype="float32")
    weights = read_back(trained.out)
    changed = set()
    for name, tensor in speech.model.state_dict().items():
        if name.endswith(".bias") and not torch.equal(weights[name], tensor):
            changed.add("encoder" if "audio_tower" in name else "decoder")
    assert changed == {"encoder", "decoder"}


@pytest.mark.parametrize("steps", [2, 4], ids=["while matching", "while training on texts"])
def test_a_kill_changes_no_byte(trained: Trained, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    update, count = trainer._Run.update, iter(range(1, 100))

    def fatal(self: trainer._Run) -> float:
        rate = update(self)
        if next(count) == steps:
            raise Killed
        return rate

    file = recipe_file(tmp_path, trained.model, trained.corpus, CHANGES)
    run("prepare", file)
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "update", fatal)
        with pytest.raises(Killed):
            run("qat", file)
    run("qat", file)
    again = tmp_path / "runs/run/64-qat"
    for name in ("model.safetensors", "log.jsonl", "log-match.jsonl", "audit.json"):
        assert (again / name).read_bytes() == (trained.out / name).read_bytes(), name
    assert stage_json(again)["match"] == stage_json(trained.out)["match"]


def test_nf4_is_what_was_trained(tmp_path: Path, pico_dir: Callable[[str], Path]) -> None:
    qat = STEPS | {"format": "nf4", "mix": {"pseudo": False}, "max_steps": 1}
    found = Trained(tmp_path, pico_dir("qwen2_audio"), PLAIN | {"qat": qat, "export": {"formats": ["nf4"]}})
    for directory in (found.out, found.run / "70-export/nf4"):
        speech = loading.load_checkpoint(str(directory), device="cpu", dtype="float32")
        names = {name: module for name, module in speech.model.named_modules() if f"{name}.weight" in found.forward}
        checked = 0
        for name, module in names.items():
            if hasattr(module.weight, "quant_state"):
                from bitsandbytes.functional import dequantize_4bit

                weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
                assert torch.equal(weight, found.forward[f"{name}.weight"]), name
                checked += 1
        assert checked > 10


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"export": {"formats": ["gguf-q4_0"]}}, "'gguf-q4_0' would round again what qat has trained"),
        ({"export": {"formats": ["w4a16-gptq"]}}, "'w4a16-gptq' would round again"),
        ({"export": {"formats": ["mixed"], "budget_ratio": 0.3}}, "qat has its own budget"),
        ({"qat": {"mix": {"pseudo": False}}}, "qat: needs budget_gb or budget_ratio"),
        ({"qat": QAT | {"format": "nf4"}}, "qat.budget_ratio: 'nf4' has one size"),
        ({"qat": QAT | {"match": {"freeze": ["encoder"]}}}, "qat.match.freeze: only the encoder is trained"),
        ({"qat": QAT | {"match": {"accumulate": 3}}}, "qat.match.accumulate: must divide batch_size"),
        ({"qat": QAT | {"mix": {"pseudo": True}}}, "qat.mix.pseudo: needs the pseudolabel section"),
    ],
)
def test_what_cannot_work_is_refused(trained: Trained, tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    file = recipe_file(tmp_path, trained.model, trained.corpus, PLAIN | {"qat": QAT, "export": None} | changes)
    with pytest.raises(RecipeError, match=problem.replace("(", r"\(")):
        recipes.load(file, [])
