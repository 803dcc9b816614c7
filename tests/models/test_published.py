"""The configurations of published models: the parameters that their shapes add up to, and what a plan makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino.models import shapes

CONFIGS = Path(__file__).parent / "configs"

# parameters, a tied head once; in millions what the model's page says, with the head stored beside where it does so
PUBLISHED = {
    "granite_speech_3.3_2b": (3_009_285_392, 3000.0),  # "3B", without its adapter
    "granite_speech_4.1_2b": (2_313_207_148, 2300.0),  # "2.3B", 4.6 GB stored, head beside the embedding
    "gemma4_12b": (11_959_730_224, 11_950.0),  # "11.95 B": everything, 49.9 M for pictures among it, rounded down
    "qwen3_asr_0.6b": (782_426_112, 938.0),  # 938 M stored, head beside the embedding
    "qwen3_asr_1.7b": (2_038_052_480, 2349.2),  # 4.70 GB stored, head beside the embedding
}


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return config


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_model(name: str) -> None:
    model = shapes.model(config_of(name))
    parameters, page = PUBLISHED[name]
    assert model.parameters == parameters
    beside = model.dims["V"] * model.dims["H"] if model.tied and name.startswith("qwen3_asr") else 0
    assert (parameters + beside) / 1e6 == pytest.approx(page, rel=1e-2)


def test_every_configuration_is_checked() -> None:
    assert {file.stem for file in CONFIGS.glob("*.json")} >= PUBLISHED.keys()
