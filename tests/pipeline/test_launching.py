"""Trainings over several devices that cannot be: said in a line, before anything runs."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from sordino.config.contradictions import contradictions
from sordino.config.schema import DataSection, DistilSection, FinetuneSection, QloraSection, Recipe, ResourcesSection
from sordino.errors import RecipeError
from sordino.pipeline import launching, planning, preflight

RECIPE = Recipe(model="m", device="cpu", data=DataSection(path="d"), finetune=FinetuneSection(batch_size=4))


def spread(devices: int, **sections: object) -> Recipe:
    return dataclasses.replace(RECIPE, resources=ResourcesSection(devices=devices), **sections)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "available", lambda device: 2)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_more_devices_than_there_are_are_refused_and_planned() -> None:
    with pytest.raises(RecipeError, match=r"resources\.devices: 4, but this machine has 2 CPU cores\. Set it to 2"):
        preflight.refuse(spread(4))
    launching.refuse(spread(2))
    launching.refuse(spread(4, finetune=None))  # nothing is trained
    told = planning.told_of(spread(4, model="owner/name"), [])
    assert any("resources.devices: 4" in line for line in told["refused"])


def test_a_torch_without_its_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"no torch\.distributed\.run.*Install torch from PyPI"):
        launching.refuse(spread(2))
    launching.refuse(spread(1))


def test_a_launcher_that_started_another_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match=r"resources\.devices: 2, but 3 processes were started\. Set it to 3"):
        launching.refuse(spread(2))
    launching.refuse(spread(3))  # which may be more than this machine has: they may be on several
    assert not launching.spreads("finetune", spread(3))


def test_only_trainings_are_spread() -> None:
    recipe = spread(2)
    assert launching.spreads("finetune", recipe)
    assert not launching.spreads("rank", recipe)
    assert not launching.spreads("finetune", spread(1))


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (spread(3), "finetune.batch_size: 4 clips cannot be dealt evenly to 3 devices times accumulate 1"),
        (
            spread(2, finetune=FinetuneSection(batch_size=6, accumulate=2)),
            "finetune.batch_size: 6 clips cannot be dealt evenly to 2 devices times accumulate 2",
        ),
        (
            spread(2, finetune=FinetuneSection(optimizer="adamw8bit")),
            "finetune.optimizer: adamw8bit is for one device; with several, moments are sharded: use adamw",
        ),
        (
            spread(2, distil=DistilSection(heal="each")),
            "distil.heal: 'each' trains on one device; set resources.devices to 1",
        ),
        (
            spread(1, qlora=QloraSection(precision="bfloat16-sharded")),
            "qlora.precision: an adapter's model is not sharded; use bfloat16-mixed",
        ),
        (spread(2, device="cuda:1"), "device: 'cuda:1' is one device; with resources.devices give its kind"),
    ],
)
def test_what_cannot_be_spread_is_a_contradiction(recipe: Recipe, problem: str) -> None:
    assert problem in contradictions(recipe)
    assert problem not in contradictions(dataclasses.replace(RECIPE, qlora=QloraSection()))


def test_an_adapter_may_have_8_bit_moments_on_several_devices() -> None:
    recipe = spread(2, finetune=None, qlora=QloraSection(optimizer="adamw8bit"))
    assert not [line for line in contradictions(recipe) if "optimizer" in line]


def test_why_workers_ended_is_told_in_a_line(tmp_path: Path) -> None:
    """A process that lost another has a traceback to tell, which says nothing of why."""

    def told(codes: list[int]) -> str:
        return f"{type(error := launching._told(tmp_path, 'finetune', codes)).__name__}: {error}"

    assert told([1]).startswith("ArtifactError: finetune: a process of the training ended with code 1. What is done")
    (tmp_path / "error-0.json").write_text('{"problem": "Traceback: closed by peer", "remedy": "", "users": false}')
    assert told([2]) == "RuntimeError: Traceback: closed by peer"
    assert told([2, -9]).startswith("ArtifactError: finetune: a process of the training was ended by signal 9.")
    assert told([2, -15]) == "RuntimeError: Traceback: closed by peer"
    (tmp_path / "error-1.json").write_text('{"problem": "clip 3 is gone.", "remedy": "Look.", "users": true}')
    assert told([2, 2]) == "SordinoError: clip 3 is gone. Look."
