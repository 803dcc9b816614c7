"""Writing a loaded model as a checkpoint that stock transformers opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sordino.checkpoint.finite import refuse_nonfinite
from sordino.checkpoint.reading import TYPES
from sordino.checkpoint.writing import Planned, Writer
from sordino.errors import FamilyError
from sordino.models.family import Family
from sordino.models.speech import SpeechModel
from sordino.runtime import files, foreign

TERMS = ("LICENSE*", "LICENCE*", "NOTICE*")  # of use, by the model's makers: they go with every copy


def save(speech: SpeechModel, directory: Path) -> None:
    """Write a checkpoint that stock `from_pretrained` loads: safetensors, config, generation config, processor.

    Raises FamilyError for weights that are no numbers, and for a head tied by hand where the transformers class cannot
    tie it: such a checkpoint is refused by `save_pretrained`, and one with a single tensor would load with a random
    head.
    """
    head, embedding = speech.model.get_output_embeddings(), speech.model.get_input_embeddings()
    if head.weight is embedding.weight and not speech.model.all_tied_weights_keys:
        raise FamilyError(
            f"transformers cannot store a {speech.family.model_type} model whose head and embedding are one tensor.",
            "Give the head a copy of the embedding's weight.",
        )
    refuse_nonfinite(speech.path, speech.model.state_dict().items())
    stored, speech.model.generation_config = speech.model.generation_config, greedy(speech)
    try:  # transformers refuses to save some configs that it loads
        write_model(speech.family, speech.model, directory)
    finally:
        speech.model.generation_config = stored
    speech.processor.save_pretrained(str(directory))
    copy_files(Path(speech.path), directory, TERMS)
    complete(speech, directory)


def complete(speech: SpeechModel, directory: Path) -> None:
    """Finish the files beside a model's weights, so that others read and generate as sordino does."""
    complete_config(speech.family, directory, speech.model)
    greedy(speech).save_pretrained(str(directory))
    file = directory / "tokenizer_config.json"
    tokenizer = foreign.read_json(file, raises=FamilyError) if file.is_file() else {}
    if isinstance(tokenizer.get("extra_special_tokens"), list):  # which transformers 4 takes for a mapping, and fails
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
        files.write_json(file, tokenizer)


def copy_files(source: Path, directory: Path, patterns: Iterable[str]) -> None:
    """Copy files of a directory, byte for byte, to the same places in another one."""
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file():
                target = directory / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def greedy(speech: SpeechModel) -> Any:
    """The generation config with which stock `generate` gives the texts that sordino gives: it stops at the same
    tokens, never takes the suppressed ones, and neither samples nor penalizes."""
    from transformers import GenerationConfig

    stored = speech.model.generation_config
    pad = stored.pad_token_id if stored.pad_token_id != -1 else None
    return GenerationConfig(
        do_sample=False,
        bos_token_id=stored.bos_token_id,
        eos_token_id=speech.stop_ids(),
        pad_token_id=speech.pad_id() if pad is None else pad,
        suppress_tokens=speech.suppressed_ids() or None,
    )


def write_model(family: Family, model: Any, directory: Path) -> None:
    """Weights, config and generation config, by `save_pretrained` where engines read what that writes."""
    if family.wrapping is None:
        model.save_pretrained(str(directory))
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_weights(family, model, directory)
        model.config.architectures = [type(model).__name__]
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.save_pretrained(str(directory))
        model.generation_config.save_pretrained(str(directory))


def write_weights(family: Family, model: Any, directory: Path) -> None:
    """A model's weights under the names of its family's checkpoints."""
    types = {getattr(torch, name): kind for kind, (_, name) in TYPES.items() if name}
    tensors = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    named = {family.tensors.saved_name(name): tensor for name, tensor in tensors.values()}  # a tied one once
    planned = {name: Planned(types[tensor.dtype], tuple(tensor.shape)) for name, tensor in named.items()}
    with Writer(directory, planned) as out:
        for name, tensor in named.items():
            out.write(name, tensor.detach())


def complete_config(family: Family, directory: Path, model: Any) -> None:
    """State in config.json whether head and embedding are one tensor, and one dtype at all levels; put the family's
    wrapping around it.

    Left out, engines inherit the class default, and one of them ran untied models with a tied head; transformers saves
    the dtype that a part was once made in.
    """
    file = directory / "config.json"
    config = foreign.read_json(file, raises=FamilyError, finite=False)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    config["tie_word_embeddings"] = tied
    if "text_config" in config:
        config["text_config"]["tie_word_embeddings"] = tied
    for name in set(model.config.sub_configs) & set(config):
        if config[name] is not None:
            config[name]["dtype"] = config["dtype"]
    if family.wrapping:
        shared = ("dtype", "tie_word_embeddings", "transformers_version", "quantization_config")
        beside = {name: config[name] for name in shared if name in config}
        inside = {family.wrapping.key: config}
        config = {"model_type": family.model_type, **family.wrapping.around, **inside, **beside}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
