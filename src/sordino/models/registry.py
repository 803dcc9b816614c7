"""Which families there are, and which one a model directory is of. No torch.

A new audio LLM is one file beside qwen2_audio.py and one line in FAMILIES.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sordino.errors import FamilyError
from sordino.models.family import Family, Scope
from sordino.runtime import foreign

FAMILIES = {
    "gemma4_unified": "sordino.models.gemma4_unified:GEMMA4_UNIFIED",
    "granite_speech": "sordino.models.granite_speech:GRANITE_SPEECH",
    "qwen2_audio": "sordino.models.qwen2_audio:QWEN2_AUDIO",
    "qwen3_asr": "sordino.models.qwen3_asr:QWEN3_ASR",
    "voxtral": "sordino.models.voxtral:VOXTRAL",
}


def get(model_type: str) -> Family:
    """The family of a config.json's model_type. Raises FamilyError for one that sordino does not know."""
    if model_type not in FAMILIES:
        raise FamilyError(
            f"models of type '{model_type}' are not supported; supported: {', '.join(sorted(FAMILIES))}.",
            "docs/add_a_family.md shows how to add one.",
        )
    module, name = FAMILIES[model_type].split(":")
    family: Family = getattr(importlib.import_module(module), name)
    return family


def of_config(config: Mapping[str, Any], path: str = "config.json") -> Family:
    """The family of a config.json. path: where it is from, for the message.

    Raises FamilyError for an unknown one, one that needs code of its own, and a layout that the family does not read.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise FamilyError(f"{path} names no model_type.", "Give a transformers model.")
    if model_type not in FAMILIES and "auto_map" in config:
        raise FamilyError(
            f"{path}: models of type '{model_type}' bring code of their own (auto_map), which is never run.",
            f"Use a checkpoint in transformers' own layout; supported: {', '.join(sorted(FAMILIES))}.",
        )
    family = get(model_type)
    family.check(config, path)
    return family


def read_config(path: str) -> dict[str, Any]:
    """config.json of a local model directory. Raises FamilyError where there is none or it is not JSON."""
    file = Path(path) / "config.json"
    if not Path(path).is_dir():
        raise FamilyError(f"there is no model directory {path}.", "Give a directory that holds config.json.")
    if not os.path.lexists(file):
        raise FamilyError(f"{path} holds no config.json, so it is not a model directory.")
    return foreign.read_json(file, raises=FamilyError, remedy="Copy the model again.")


def is_hub_id(path: str) -> bool:
    """'owner/name' that is no local directory is a model on the Hub."""
    return not Path(path).exists() and path.count("/") == 1 and not path.startswith((".", "/", "~"))


def family_of(path: str, revision: str | None = None) -> Family:
    """The family of a local directory or a Hub id. Raises FamilyError."""
    if not is_hub_id(path):
        return of_config(read_config(path), str(Path(path) / "config.json"))
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    except (OSError, ValueError) as error:
        raise not_fetched(path, error) from error
    return of_config(config, path)


def layer_count(config: Any, scope: Scope) -> int:
    """Layers of a scope by a model's config; 0 where the family has no such stack. Raises FamilyError."""
    stack = get(str(config.model_type)).stacks.get(scope)
    return int(getattr(sub_config(config, stack.config), stack.count)) if stack else 0


def sub_config(config: Any, name: str) -> Any:
    """The part of a config object at a dotted name; the whole at ""."""
    return functools.reduce(getattr, filter(None, name.split(".")), config)


def is_gguf(path: str) -> bool:
    """Whether a local directory's decoder is a GGUF file (formats/gguf.py)."""
    if is_hub_id(path):
        return False
    quantization = read_config(path).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "gguf"


def not_fetched(path: str, error: Exception) -> FamilyError:
    return FamilyError(
        f"'{path}' is neither a local directory nor a model that could be fetched from the Hub "
        f"({str(error).splitlines()[0]}).",
        "Check the name and the network, or download the model and give its directory.",
    )


def load_processor(family: Family, path: str, revision: str | None = None) -> Any:
    """A model's processor. Raises FamilyError where its files, or config.json, are missing or wrong."""
    try:
        return family.load_processor(path, revision)
    except FamilyError:
        raise
    except Exception as error:  # transformers checks config.json on the way, with error types of its own
        raise FamilyError(
            f"the processor in {path} does not load ({' '.join(str(error).split())}).",
            "Copy config.json and the processor and tokenizer files of the original model beside the weights.",
        ) from error
