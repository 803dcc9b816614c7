"""The configurations of published models: the parameters that their shapes add up to, and what a plan makes of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sordino.config.recipe import load, shipped
from sordino.models import registry, shapes
from sordino.pipeline.forecast import forecast

CONFIGS = Path(__file__).parent / "configs"

# parameters, a tied head once; in millions what the model's page says, with the head stored beside where it does so
PUBLISHED = {
    "audioflamingo3_8b": (8_267_215_360, 8267.2),  # "8B"; its configuration is that of transformers' conversion script
    "granite_speech_3.3_2b": (3_009_285_392, 3000.0),  # "3B", without its adapter
    "granite_speech_4.1_2b": (2_313_207_148, 2300.0),  # "2.3B", 4.6 GB stored, head beside the embedding
    # 5.6 B with its LoRAs for speech and pictures, 923 and 738 MB in 16 bits, which are in no base
    "phi4_multimodal": (4_743_988_192, 5574.5 - 461.4 - 369.1),
    "qwen2_5_omni_7b": (8_931_813_888, 8931.8),  # the thinker, as stored without talker and vocoder
    "qwen2_audio_7b": (8_397_094_912, 8397.0),  # 8.40 B, head beside the embedding
    "voxtral_mini_3b": (4_676_271_104, 4676.3),  # no figure on its page; its configuration is the class's defaults
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


@pytest.mark.parametrize(
    ("recipe", "name", "removed"),
    [
        ("audioflamingo3_en_de", "audioflamingo3_8b", 6),
        ("granite_speech_en_de", "granite_speech_4.1_2b", 12),
        ("phi4_multimodal_en_de", "phi4_multimodal", 8),
        ("qwen2_5_omni_en_de", "qwen2_5_omni_7b", 6),
        ("qwen3_asr_en_de", "qwen3_asr_1.7b", 8),
        ("voxtral_en_de", "voxtral_mini_3b", 8),
    ],
)
def test_its_recipe_is_planned_from_the_configuration(recipe: str, name: str, removed: int) -> None:
    config = config_of(name)
    whole = shapes.model(config)
    pruned = shapes.model(config, decoder_layers=whole.dims["decoder_layers"] - removed)
    found = forecast(load(shipped()[recipe]), config, "cuda")
    assert found["prune"].size == pytest.approx(2 * pruned.parameters, rel=0.01)
    assert found["finetune"].size == pytest.approx(2 * whole.parameters, rel=0.01)
    assert 0 < (found["export"].size or 0) < 1.2 * (found["prune"].size or 0)  # in two formats
    assert all(stage.memory for stage in found.values() if stage is not found.get("trim"))


@pytest.mark.parametrize(
    ("name", "parameters", "said", "digits"),
    [
        ("gemma4_12b", 11_959_730_224, 11.95, 2),  # 49.9 M of them for pictures
        ("gemma4_e2b", 5_104_298_467, 5.1, 1),  # 168.5 M for pictures, 2,348.8 M in the layers' own embeddings
        ("gemma4_e4b", 7_941_101_802, 7.9, 1),  # 169.3 M for pictures, 2,818.6 M in the layers' own embeddings
    ],
)
def test_gemmas_count_everything_rounded_down(name: str, parameters: int, said: float, digits: int) -> None:
    config = config_of(name)
    assert shapes.model(config).parameters == parameters
    assert math.floor(parameters / 1e9 * 10**digits) / 10**digits == said
    kind = getattr(transformers, registry.of_config(config).model_class)
    with torch.device("meta"):
        model = kind(kind.config_class.from_dict(config))
    tensors = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}  # a tied one once
    assert sum(tensors.values()) == parameters


@pytest.mark.parametrize(("name", "saved"), [("gemma4_e2b", 2_247_655_424), ("gemma4_e4b", 2_850_684_928)])
def test_trimming_reaches_the_layers_own_embeddings(name: str, saved: int) -> None:
    config = config_of(name)
    assert shapes.model(config).parameters - shapes.model(config, vocabulary=48_000).parameters == saved


def test_e2bs_recipe_trims_what_the_page_says() -> None:
    config = config_of("gemma4_e2b")
    found = forecast(load(shipped()["gemma4_e2b_en_de"]), config, "cuda")
    trimmed = shapes.model(config, vocabulary=48_000).parameters
    assert round(trimmed / 1e9, 2) == 2.86
    assert found["trim"].size == pytest.approx(2 * trimmed, rel=0.01)
    assert "prune" not in found
