"""A plan is made in a moment: nothing heavy is imported for it, and no family is refused for want of a forecast."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.config import recipe as recipes
from sordino.models import qwen2_audio
from sordino.pipeline import device, runner
from sordino.pipeline.forecast import config_of
from tests.stages.runs import Made, recipe_file, write_corpus

HEAVY = ("torch", "transformers", "numpy", "soundfile", "sacrebleu", "huggingface_hub", "peft")


def imported_by(statement: str) -> list[str]:
    """The heavy packages that a new process has imported after a statement."""
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stderr.splitlines()[-1].replace("'", '"'))
    return names


def test_stages_are_imported_without_torch() -> None:
    assert imported_by("from sordino.pipeline import runner; assert len(runner.pipeline()) == 15") == []


@pytest.mark.parametrize("rank", [{}, {"method": "explicit", "layers": ["decoder.2"]}], ids=["searched", "named"])
def test_a_plan_imports_nothing_heavy(rank: dict[str, object], pico_dir: Callable[[str], Path], tmp_path: Path) -> None:
    changes = {"rank": {"remove": 1} | rank, "sweep": {}}
    file = recipe_file(tmp_path, pico_dir("qwen2_audio"), write_corpus(tmp_path / "corpus"), changes)
    assert imported_by(f"from sordino.cli import main; assert main(['plan', {str(file)!r}]) == 0") == []


def test_a_plan_of_a_finished_run_imports_nothing_heavy(made: Made, tmp_path: Path) -> None:
    file = made.copied(tmp_path, {"trim": None, "export": {"of": "merged", "formats": ["nf4"]}}, ["10-data"])
    assert imported_by(f"from sordino.cli import main; assert main(['plan', {str(file)!r}]) == 0") == []


def test_torch_is_asked_only_where_there_may_be_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(name: str) -> object:
        raise LookupError(name)

    monkeypatch.setattr(device, "device_of", asked)
    monkeypatch.setattr(device, "may_have_accelerator", lambda: False)
    assert device.device_type("cpu") == device.device_type("auto") == "cpu"
    with pytest.raises(LookupError):
        device.device_type("cuda")
    monkeypatch.setattr(device, "may_have_accelerator", lambda: True)
    assert device.device_type("cpu") == "cpu"
    with pytest.raises(LookupError):
        device.device_type("auto")


def test_a_family_without_shapes_is_planned_without_a_forecast(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load(made.recipe(made.root))
    config = config_of(recipe)
    assert config and any(line.forecast for line in runner.plan(recipe, config))
    family = qwen2_audio.QWEN2_AUDIO
    unknown = dataclasses.replace(family, tensors=dataclasses.replace(family.tensors, tables={}))
    monkeypatch.setattr(qwen2_audio, "QWEN2_AUDIO", unknown)
    lines = runner.plan(recipe, config)
    assert [line.stage for line in lines][:2] == ["prepare", "finetune"]
    assert not any(line.forecast for line in lines)
