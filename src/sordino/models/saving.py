"""Writing a loaded model as a checkpoint that stock transformers opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sordino.errors import FamilyError
from sordino.models.speech import SpeechModel


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
        if config[name] is not None:
            config[name]["dtype"] = config["dtype"]
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
