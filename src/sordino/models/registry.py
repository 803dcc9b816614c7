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

from sordino.errors import FamilyError, reason
from sordino.models import chat_template, config_file
from sordino.models.family import Family, Scope, Tensors

CONFIG = config_file.NAME
FAMILIES = {
    "audioflamingo3": "sordino.models.audioflamingo3:AUDIOFLAMINGO3",
    "gemma4": "sordino.models.gemma4:GEMMA4",
    "gemma4_unified": "sordino.models.gemma4_unified:GEMMA4_UNIFIED",
    "granite_speech": "sordino.models.granite_speech:GRANITE_SPEECH",
    "phi4_multimodal": "sordino.models.phi4_multimodal:PHI4_MULTIMODAL",
    "qwen2_audio": "sordino.models.qwen2_audio:QWEN2_AUDIO",
    "qwen2_5_omni": "sordino.models.qwen2_5_omni:QWEN2_5_OMNI",
    "qwen3_asr": "sordino.models.qwen3_asr:QWEN3_ASR",
    "voxtral": "sordino.models.voxtral:VOXTRAL",
}
# beside the weights: what a processor is loaded from, whatever version of transformers wrote it
PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tekken.json", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip

# other names of the same, as bare configurations have them
ALIASES = {"qwen2_5_omni_thinker": "qwen2_5_omni"}

# types whose code is their own -> where the same weights are without
REMOTE = {
    "phi4mm": "Phi-4-multimodal is in transformers' own layout under model: microsoft/Phi-4-multimodal-instruct, "
    "revision: refs/pr/70.",
}

# types that look like ours -> why they are none
REFUSED = {
    "qwen3_omni_moe": "transformers fuses the experts of a layer, 29 of the thinker's 31.7 billion weights, into "
    "tensors that no 4-bit format here packs and no adapter wraps, and that the files hold expert by expert",
}

USUAL = "Qwen/Qwen2-Audio-7B-Instruct"  # the paper's, which a first recipe starts from


def get(model_type: str) -> Family:
    """The family of a config.json's model_type. Raises FamilyError for one that sordino does not know."""
    model_type = ALIASES.get(model_type, model_type)
    if why := REFUSED.get(model_type.removesuffix("_thinker")):
        raise FamilyError(
            f"models of type '{model_type}' are not supported: {why}.", "Take a dense model, e.g. Qwen/Qwen2.5-Omni-7B."
        )
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
    if model_type not in {*FAMILIES, *ALIASES} and "auto_map" in config:
        raise FamilyError(
            f"{path}: models of type '{model_type}' bring code of their own (auto_map), which is never run.",
            REMOTE.get(model_type)
            or f"Use a checkpoint in transformers' own layout; supported: {', '.join(sorted(FAMILIES))}.",
        )
    family = get(model_type)
    family.check(config, path)
    return family


def read_config(path: str) -> dict[str, Any]:
    """config.json of a local model directory. Raises FamilyError where there is none, or it cannot be one, where an
    adapter lies beside it that is no part of the model, and where one that is does not."""
    directory = Path(path)
    if not directory.is_dir():
        raise FamilyError(f"there is no model directory {path}.", "Give a directory that holds config.json.")
    if not os.path.lexists(directory / config_file.NAME):
        raise FamilyError(f"{path} holds no config.json, so it is not a model directory.")
    config = config_file.read(directory)
    if owns_adapter(config):
        family = get(config["model_type"])
        config_file.refuse_lost_adapter(directory, family.adapter_flag, family.adapter_folder)
        if not family.adapter_folder:
            return config
    config_file.refuse_adapter_beside(directory)
    return config


def tensors_of(config: Mapping[str, Any]) -> Tensors:
    """Names of a config.json's family; those of the files where it is not known."""
    model_type = str(config.get("model_type"))
    return get(model_type).tensors if model_type in FAMILIES else Tensors(saved={})


def owns_adapter(config: Mapping[str, Any]) -> bool:
    """Whether an adapter is a part of this model, and lies in its directory."""
    model_type = str(config.get("model_type"))
    flag = get(model_type).adapter_flag if model_type in FAMILIES else ""
    return bool(flag and config.get(flag, True))


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
    config_file.check(config, path)
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
    quantization = read_config(path).get("quantization_config") or {}
    return quantization.get("quant_method") == config_file.GGUF


def not_fetched(path: str, error: Exception) -> FamilyError:
    return FamilyError(
        f"'{path}' is neither a local directory nor a model that could be fetched from the Hub "
        f"({str(error).splitlines()[0]}).",
        "Check the name and the network, or download the model and give its directory.",
    )


def load_processor(family: Family, path: str, revision: str | None = None) -> Any:
    """A model's processor. Raises FamilyError where its files, or config.json, are missing or wrong."""
    if not is_hub_id(path):
        _check_processor_files(Path(path))
    try:
        processor = family.load_processor(path, revision)
        chat_template.drop_default(processor)
        return processor
    except FamilyError:
        raise
    except Exception as error:  # transformers checks config.json on the way, with error types of its own
        raise FamilyError(
            f"the processor in {path} does not load ({reason(error)}).",
            "Copy config.json and the processor and tokenizer files of the original model beside the weights.",
        ) from error


def _check_processor_files(directory: Path) -> None:
    """Raise FamilyError for a file that transformers would pass over for its class's default."""
    for file in (file for pattern in PROCESSOR_FILES for file in directory.glob(pattern)):
        if not file.is_file():
            raise FamilyError(f"{file} is no regular file.", "Copy it again from the original model.")
        if file.suffix == ".jinja" and not file.read_bytes().strip():
            raise FamilyError(f"{file} is empty.", "Copy it again from the original model.")
