"""Open any model of a run, or any model directory: plain, quantized, with its decoder in llama.cpp, or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sordino.config.records import read_stage
from sordino.errors import ArtifactError, FamilyError
from sordino.models import adapters, hybrid, registry
from sordino.models.base import SpeechModel
from sordino.runtime import files

ADAPTER_CONFIG = "adapter_config.json"


def open_model(path: str, **options: Any) -> SpeechModel:
    """Load what lies at `path`. Options are those of registry.load.

    An adapter directory is opened on the base its config names, quantized as it was while training.
    Raises FamilyError for anything that is no model.
    """
    directory = Path(path)
    if not (directory / ADAPTER_CONFIG).is_file():
        if directory.is_dir() and not (directory / "config.json").is_file():
            inside = sorted(p.parent.name for p in directory.glob("*/config.json"))
            if inside:
                raise FamilyError(
                    f"{path} is no model directory, but holds some: {', '.join(inside)}.",
                    f"Give one, e.g. {directory / inside[0]}.",
                )
        return hybrid.load(path, **options) if registry.is_gguf(path) else registry.load(path, **options)
    config = files.read_json(directory / ADAPTER_CONFIG)
    base = str(config.get("base_model_name_or_path") or "")
    if not Path(base).is_absolute() and (directory / base).is_dir():  # a model of the same run
        base = str(directory / base)
    stage = read_stage(directory)
    if stage is None:
        raise ArtifactError(
            f"{directory} holds an adapter that sordino did not finish.", "Merge it, or run qlora again."
        )
    speech = registry.load(base, **adapters.base_options(stage["section"]), **options)
    adapters.load(speech, directory)
    speech.path = path
    return speech
