"""A pytest plugin that makes docs/add_a_family.md's toy the only family: `-p tests.models.toy_plugin`.

The environment names the directory that holds toy.py.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from sordino.models import registry
from tests import tiny
from tests.models.toy_model import ToyConfig, ToyForConditionalGeneration

DIRECTORY = "SORDINO_TOY"


def install(directory: str) -> None:
    """Put the toy into transformers and into the registry, as its author would."""
    sys.path.insert(0, directory)
    transformers: Any = sys.modules["transformers"]  # the module that lazy importing put in place of the first
    transformers.ToyConfig = ToyConfig
    transformers.ToyForConditionalGeneration = ToyForConditionalGeneration
    transformers.AutoConfig.register("toy", ToyConfig, exist_ok=True)
    registry.FAMILIES.clear()
    registry.FAMILIES["toy"] = "toy:TOY"
    tiny.FAMILY = "toy"


if DIRECTORY in os.environ:
    install(os.environ[DIRECTORY])
