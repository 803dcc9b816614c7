"""Which families there are, and how a model directory is opened, saved and recognised.

A new audio LLM is one file beside qwen2_audio.py and one line in FAMILIES.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sordino.checkpoint.reading import Checkpoint
from sordino.errors import FamilyError

if TYPE_CHECKING:  # torch is imported by what loads: a plan looks at config.json alone
    import torch

    from sordino.models.base import Family, Scope, SpeechModel

FAMILIES = {
    "qwen2_audio": "sordino.models.qwen2_audio:QWEN2_AUDIO",
    "voxtral": "sordino.models.voxtral:VOXTRAL",
}


def check_type(model_type: str) -> str:
    """The same model_type. Raises FamilyError for one that sordino does not know."""
    if model_type not in FAMILIES:
        raise FamilyError(
            f"models of type '{model_type}' are not supported; supported: {', '.join(sorted(FAMILIES))}.",
            "docs/add_a_family.md shows how to add one.",
        )
    return model_type


def get(model_type: str) -> Family:
    """The family of a config.json's model_type. Raises FamilyError for one that sordino does not know."""
    module, name = FAMILIES[check_type(model_type)].split(":")
    family: Family = getattr(importlib.import_module(module), name)
    return family


def read_config(path: str) -> dict[str, Any]:
    """config.json of a local model directory. Raises FamilyError where there is none or it is not JSON."""
    file = Path(path) / "config.json"
    if not Path(path).is_dir():
        raise FamilyError(f"there is no model directory {path}.", "Give a directory that holds config.json.")
    if not file.is_file():
        raise FamilyError(f"{path} holds no config.json, so it is not a model directory.")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FamilyError(f"{file} is not valid JSON ({error}).", "Copy the model again.") from error
    return config


def is_hub_id(path: str) -> bool:
    """'owner/name' that is no local directory is a model on the Hub."""
    return not Path(path).exists() and path.count("/") == 1 and not path.startswith((".", "/", "~"))


def family_of(path: str, revision: str | None = None) -> Family:
    """The family of a local directory or a Hub id. Raises FamilyError."""
    if is_hub_id(path):
        from transformers import AutoConfig

        try:
            return get(str(AutoConfig.from_pretrained(path, revision=revision).model_type))
        except (OSError, ValueError) as error:
            raise not_fetched(path, error) from error
    return get(model_type_of(path))


def model_type_of(path: str) -> str:
    """model_type of a local directory; its family is not imported. Raises FamilyError for one that is not supported."""
    model_type = read_config(path).get("model_type")
    if not isinstance(model_type, str):
        raise FamilyError(f"{Path(path) / 'config.json'} names no model_type.", "Give a transformers model.")
    return check_type(model_type)


def layer_count(config: Any, scope: Scope) -> int:
    """Layers of a scope by a model's config. Raises FamilyError for a family that is not supported."""
    name, count = get(str(config.model_type)).layer_counts[scope]
    return int(getattr(getattr(config, name), count))


def is_gguf(path: str) -> bool:
    """Whether a local directory's decoder is a GGUF file (formats/gguf.py)."""
    if is_hub_id(path):
        return False
    quantization = read_config(path).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "gguf"


def default_device(wanted: str = "auto") -> torch.device:
    """'auto' takes the accelerator torch reports, else the CPU."""
    import torch

    if wanted != "auto":
        return torch.device(wanted)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device(accelerator.type) if accelerator is not None else torch.device("cpu")


def default_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 on an accelerator and float32 on a CPU.

    Not every CPU multiplies bfloat16 fast (with AVX2 alone it is about five times slower than float32), and
    one rule for all of them keeps a recipe's results the same from machine to machine.
    """
    import torch

    if wanted != "auto":
        named: torch.dtype = getattr(torch, wanted)
        return named
    return torch.float32 if device.type == "cpu" else torch.bfloat16


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


def load(
    path: str,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: Literal["nf4"] | None = None,
    kept: Sequence[str] = (),
    attention: str | None = None,
    revision: str | None = None,
) -> SpeechModel:
    """Load a model directory (or Hub id) with stock `from_pretrained`; a stored quantization is respected.

    quantize="nf4" quantizes the linear layers while loading (bitsandbytes, double quantization), but for the head and
    the parts in `kept`.
    Raises FamilyError for an unknown family, weights that do not load and a model whose decoder is not transformers',
    ArtifactError for damaged shards, by name.
    """
    import torch
    import transformers

    from sordino.models.base import SpeechModel, module_at

    family = family_of(path, revision)
    if is_gguf(path):
        raise FamilyError(
            f"{path} holds a decoder for llama.cpp, which translates and does nothing else.",
            "Train, rank, prune, merge or export the 16-bit model it was made from.",
        )
    where = torch.device(device) if str(device) != "auto" else default_device()
    floating = dtype if isinstance(dtype, torch.dtype) else default_dtype(dtype, where)
    model_class = getattr(transformers, family.model_class)
    options: dict[str, Any] = {"dtype": floating, "use_safetensors": True, "device_map": {"": str(where)}}
    if attention:
        options["attn_implementation"] = attention
    if revision:
        options["revision"] = revision
    if not is_hub_id(path):
        Checkpoint.open(Path(path))
    processor = load_processor(family, path, revision)
    if quantize == "nf4":
        from sordino.models.nf4 import nf4_config

        options["quantization_config"] = nf4_config(family, floating, kept)
    try:
        model, report = model_class.from_pretrained(path, output_loading_info=True, **options)
    except FamilyError:
        raise
    except Exception as error:  # safetensors and transformers raise many types for damaged files
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        raise FamilyError(
            f"the weights in {path} do not load: {type(error).__name__}: {error}.",
            "Copy or make the model again.",
        ) from error
    check_names(
        path,
        missing=report["missing_keys"],
        unexpected=report["unexpected_keys"],
        mismatched=[f"'{key[0]}'" for key in report["mismatched_keys"]],
    )
    model.eval()
    for part in family.fixed:  # the class freezes them, and loading a checkpoint undoes that
        module_at(model, part).requires_grad_(False)
    if quantize or getattr(model, "is_quantized", False):
        from sordino.models.nf4 import check_nf4, is_packed, set_compute_dtype, unpack

        if is_packed(model):
            unpack(model)
        set_compute_dtype(model, floating)
        if quantize:
            check_nf4(family, model, kept)
    return SpeechModel(family, model, processor, path)


def check_names(
    path: str | Path, *, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]
) -> None:
    """Raise FamilyError where a checkpoint's weights are not those that its config.json describes.

    Weights beyond them do no harm, unless they are of a layer that config.json does not count.
    """
    lacking, others = sorted(missing), sorted(mismatched)
    if lacking:
        raise FamilyError(
            f"{path} lacks {len(lacking)} weights that its config.json promises, {lacking[0]} among them.",
            "The checkpoint is incomplete or its layer counts are wrong: make it again.",
        )
    dropped = sorted(key for key in unexpected if re.search(r"\.layers\.\d+\.", key))
    if dropped:
        raise FamilyError(
            f"{path} holds {len(dropped)} weights of layers that its config.json does not count, "
            f"{dropped[0]} among them.",
            "Pruned by editing config.json? Loading would drop the last layers: use 'sordino prune'.",
        )
    if others:
        raise FamilyError(
            f"{path} holds {len(others)} weights of other shapes than its config.json says, {others[0]} among them.",
            "Copy config.json and the weights of one model again.",
        )


def not_fetched(path: str, error: Exception) -> FamilyError:
    return FamilyError(
        f"'{path}' is neither a local directory nor a model that could be fetched from the Hub "
        f"({str(error).splitlines()[0]}).",
        "Check the name and the network, or download the model and give its directory.",
    )


def save(speech: SpeechModel, directory: Path) -> None:
    """Write a checkpoint that stock `from_pretrained` loads: safetensors, config, generation config, processor.

    Raises FamilyError for a head tied by hand where the transformers class cannot tie it: such a checkpoint is
    refused by `save_pretrained`, and one with a single tensor would load with a random head.
    """
    head, embedding = speech.model.get_output_embeddings(), speech.model.get_input_embeddings()
    if head.weight is embedding.weight and not speech.model.all_tied_weights_keys:
        raise FamilyError(
            f"transformers cannot store a {speech.family.model_type} model whose head and embedding are one tensor.",
            "Give the head a copy of the embedding's weight.",
        )
    speech.model.save_pretrained(str(directory))
    speech.processor.save_pretrained(str(directory))
    complete_config(directory, speech.model)


def complete_config(directory: Path, model: Any) -> None:
    """State in config.json whether head and embedding are one tensor, and one dtype at all levels.

    Left out, engines inherit the class default, and one of them ran untied models with a tied head; transformers saves
    the dtype that a part was once made in.
    """
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    config["tie_word_embeddings"] = tied
    if "text_config" in config:
        config["text_config"]["tie_word_embeddings"] = tied
    for name in set(model.config.sub_configs) & set(config):
        config[name]["dtype"] = config["dtype"]
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
