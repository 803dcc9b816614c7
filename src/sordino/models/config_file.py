"""config.json as others wrote it: an object whose parts are objects and whose sizes are sizes. No torch.

transformers takes a missing or odd part for its class's default, which may be a model of billions of weights; what is
refused here is refused before anything is allocated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sordino.errors import FamilyError, SordinoError
from sordino.runtime import foreign
from sordino.runtime.terminal import quoted

NAME = "config.json"
REMEDY = "Copy the model again."
PART = "_config"  # ending of the keys under which parts lie
SIZE = re.compile(r"^num_|(?<!chunk)_(?:heads|layers|size|dim|positions|bins)$|^d_model$")  # a chunk of -1 is all
SHARE = re.compile(r"dropout|layerdrop")
MOST_LAYERS, MOST = 10_000, 2**31 - 1
GGUF, GGUF_SUFFIX = "gguf", ".gguf"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def read(directory: Path, *, raises: type[SordinoError] = FamilyError) -> dict[str, Any]:
    """A model directory's config.json. Raises `raises` where there is none, or it cannot be one."""
    file = directory / NAME
    config = foreign.read_json(file, raises=raises, remedy=REMEDY, finite=False)  # some settings may be infinite
    check(config, str(file), raises=raises)
    return config


def check(config: Mapping[str, Any], where: str, *, raises: type[SordinoError] = FamilyError) -> None:
    """Raise `raises` for parts that are no objects, and numbers that no model has. where: of the file, for people."""
    for key, value in _settings(config):
        name = key.rpartition(".")[2]
        number = isinstance(value, int | float)
        if name.endswith(PART):
            fine = value is None or isinstance(value, Mapping)
        elif number and SHARE.search(name):
            fine = 0 <= value <= 1
        elif number and SIZE.search(name):
            fine = 0 <= value <= (MOST_LAYERS if name.endswith("layers") else MOST)
        else:
            fine = True
        if not fine:
            raise raises(f"{where}: {key} cannot be {quoted(value, 60)}.", REMEDY)
    quantization = config.get("quantization_config")
    if quantization and quantization.get("quant_method") == GGUF:
        _check_gguf(quantization.get("file"), where, raises)


def _check_gguf(name: Any, where: str, raises: type[SordinoError]) -> None:
    """The decoder's file lies in the model's directory itself."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(GGUF_SUFFIX):
        raise raises(f"{where}: quantization_config.file cannot be {quoted(name, 60)}.", "Export the model again.")


def _settings(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every setting, those of the parts included."""
    for key, value in config.items():
        yield f"{above}{key}", value
        if key.endswith(PART) and isinstance(value, Mapping) and key != "quantization_config":
            yield from _settings(value, f"{above}{key}.")


def refuse_adapter_beside(directory: Path) -> None:
    """Raise FamilyError for an adapter beside whole weights: stock loading applies it to them once more, and what
    copies the weights leaves it out."""
    if os.path.lexists(directory / ADAPTER_CONFIG):
        raise FamilyError(
            f"{directory} holds a whole model ({NAME}) and an adapter ({ADAPTER_CONFIG}), which stock loading would "
            "apply to the model's weights.",
            f"If it is merged into them, remove {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}; else move both out of there.",
        )


def refuse_lost_adapter(directory: Path, flag: str, folder: str = "") -> None:
    """Raise FamilyError where an adapter is a part of the model and a file of it is missing. flag: what says so;
    folder: where it lies."""
    files = (Path(folder) / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    missing = [name for name in files if not (directory / name).is_file()]
    if missing:
        raise FamilyError(
            f"{directory}: an adapter belongs to the weights unless {NAME} says otherwise ({flag}), and there is no "
            f"{missing[0]}.",
            f"Copy all of the original model's files, or set {flag} to false where it is merged.",
        )
