"""Which model an adapter was trained on, and whether the one that lies there now is still that one.

An adapter fits any model of the same shapes, and makes nonsense of all but one. Its stage.json has a hash of that
model's weights (`base_weights`); older ones have their parents' hashes. Neither says where a run lies, so that a run
can be moved or copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sordino.checkpoint.reading import Checkpoint
from sordino.config import records
from sordino.errors import ArtifactError
from sordino.models import registry, stored
from sordino.models.config_file import ADAPTER_CONFIG
from sordino.runtime import files, foreign

STAGE = "qlora"
RECORDED = "base_weights"  # key of the hash in stage.json


def stage_of(directory: Path) -> dict[str, Any]:
    """stage.json of an adapter. Raises ArtifactError for one of another stage, and where there is none."""
    stage = records.read_stage(directory)
    if stage is None or stage.get("stage") != STAGE:
        raise ArtifactError(
            f"{directory} holds an adapter, and no {records.STAGE_FILE} of the stage that trained it.",
            "Give an adapter as sordino's qlora leaves it, or the merged model.",
        )
    return stage


def base_of(directory: Path) -> str:
    """The model that an adapter names, relative to its own directory or absolute, or a Hub id. Raises ArtifactError."""
    config = foreign.read_json(
        directory / ADAPTER_CONFIG, raises=ArtifactError, required={"base_model_name_or_path": str}
    )
    base = str(config["base_model_name_or_path"])
    beside = directory / base
    return str(beside) if not registry.is_hub_id(base) or beside.is_dir() else base


def weights_hash(path: str, revision: str | None = None) -> str:
    """Of a model's weights files, by what they hold; a Hub model's are fetched. Raises ArtifactError, FamilyError."""
    found = Checkpoint.open(stored.local(path, revision)).files
    return files.combined({file.name: files.fingerprint_file(file) for file in found})


def refuse_other(directory: Path, base: str, revision: str | None = None) -> None:
    """Raise ArtifactError where `base` is not the model that the adapter was trained on."""
    stage = stage_of(directory)
    same = stage[RECORDED] == weights_hash(base, revision) if RECORDED in stage else _is_parent(stage, base)
    if not same:
        raise ArtifactError(
            f"{directory} was trained on other weights than {base} holds now, so that its translations would be wrong.",
            "Run qlora again, or put the model back that it was trained on.",
        )


def _is_parent(stage: dict[str, Any], base: str) -> bool:
    """By the parents' hashes: of a stage of the run, whose record tells of its files; of a base model, by its files."""
    hashes = {parent["hash"] for parent in stage["parents"]}
    if registry.is_hub_id(base):
        return any(parent["path"] == base for parent in stage["parents"])
    made = records.read_stage(Path(base))
    if made is None:
        return files.combined(records.fingerprints(Path(base))) in hashes
    weights = Checkpoint.open(Path(base)).files
    return made["hash"] in hashes and all(
        made["outputs"].get(file.name) == files.fingerprint_file(file) for file in weights
    )
