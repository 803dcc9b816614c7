"""A pytest plugin that makes docs/add_a_family.md's toy the only family: `-p tests.models.toy_plugin`.

The environment names the directory that holds toy.py.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from sordino.data.audio import Waveform
from sordino.models import registry
from tests import tiny
from tests.models.toy_model import FRAME, QUERIES, STATES, ToyConfig, ToyForConditionalGeneration

DIRECTORY = "SORDINO_TOY"


def stock_inputs(processor: Any, wave: Waveform, instruction: str) -> dict[str, Tensor]:
    """What the toy's own processor would make of a clip."""
    rows = torch.nn.functional.pad(torch.as_tensor(wave), (0, -len(wave) % FRAME)).view(-1, FRAME)
    with_encoder = "encoder" in registry.get("toy").parts
    count = -(-len(rows) // STATES) * QUERIES if with_encoder else len(rows)
    text = "<audio>" * count + instruction + "\n"
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    return {"input_ids": torch.tensor([ids]), "input_features": rows}


def install(directory: str) -> None:
    """Put the toy into transformers and into the registry, as its author would."""
    sys.path.insert(0, directory)
    transformers: Any = sys.modules["transformers"]
    for module in (transformers, tiny.transformers):  # lazy importing puts another in place of the first
        module.ToyConfig = ToyConfig
        module.ToyForConditionalGeneration = ToyForConditionalGeneration
    transformers.AutoConfig.register("toy", ToyConfig, exist_ok=True)
    registry.FAMILIES.clear()
    registry.FAMILIES["toy"] = "toy:TOY"
    tiny._STOCK_INPUTS["toy"] = stock_inputs


if DIRECTORY in os.environ:
    install(os.environ[DIRECTORY])
