"""stage.json, the record of a finished stage, as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sordino.runtime import files

STAGE_FILE = "stage.json"


def read_stage(directory: Path) -> dict[str, Any] | None:
    """stage.json of a finished stage; None where the stage has not finished."""
    if not (directory / STAGE_FILE).is_file():
        return None
    stage: dict[str, Any] = files.read_json(directory / STAGE_FILE)
    return stage if stage.get("complete") is True else None
