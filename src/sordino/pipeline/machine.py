"""Errors of the machine while a stage works, as what the user can do about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sordino.errors import ArtifactError, explain_os_error, is_out_of_memory
from sordino.pipeline import leftovers
from sordino.pipeline.stage import Stage


def explained(
    error: Exception, stage: Stage[Any], settings: Mapping[str, Any], directory: Path, device: str
) -> ArtifactError | None:
    """An error of the machine in the words of the stage; None for any other error."""
    if is_out_of_memory(error):
        return short_of_memory(stage, settings, device)
    return explain_os_error(error, leftovers.partial_of(directory))


def short_of_memory(stage: Stage[Any], settings: Mapping[str, Any], device: str) -> ArtifactError:
    """Names the settings of this stage that take less memory for the same result."""
    name, ways = stage.name, []
    if settings.get("accumulate", settings.get("batch_size")) != settings.get("batch_size"):
        now = f"{settings['accumulate']}, batch_size {settings['batch_size']}"
        ways.append(f"raise {name}.accumulate (now {now}): fewer clips at once, the same steps")
    elif "accumulate" not in settings and settings.get("batch_size", 1) > 1:
        ways.append(f"lower {name}.batch_size (now {settings['batch_size']})")
    if settings.get("gradient_checkpointing") is False:
        ways.append(f"set {name}.gradient_checkpointing=true")
    if "memory_mb" in settings:
        now = settings["memory_mb"] or "a quarter of the model; on an accelerator half of what is free"
        ways.append(f"lower {name}.memory_mb (now {now})")
    if settings.get("optimizer") == "adamw":
        ways.append(f"set {name}.optimizer=adamw8bit (other results, from the start)")
    if "precision" in settings and settings["precision"] != "bfloat16":
        ways.append(f"set {name}.precision=bfloat16 (other results, from the start)")
    ways.append("take a device with more memory")
    # translate has none: its speeds are of one batch size
    progress = "What is done is kept." if stage.resumable else "The stage begins again with other settings."
    return ArtifactError(
        f"{name}: the memory of {device} is not enough.",
        f"What helps: {'; or '.join(ways)}. {progress} `sordino plan` says what a stage takes.",
    )
