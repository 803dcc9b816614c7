"""Export formats: name -> `write(source, directory, revision)` and LOADS_WITH, of a module or of something in one."""

from __future__ import annotations

import importlib
from typing import Any

FORMATS = {
    "bf16": "sordino.formats.bf16",
    "nf4": "sordino.formats.nf4",
    "w4a16": "sordino.formats.w4a16",
    "w4a16-gptq": "sordino.formats.w4a16_gptq",
    "mixed": "sordino.formats.packed",
    "gguf-q8_0": "sordino.formats.gguf:Q8_0",
    "gguf-q4_k_m": "sordino.formats.gguf:Q4_K_M",
    "gguf-q4_0": "sordino.formats.gguf:Q4_0",
}
MIXED = "mixed"  # the format whose widths are chosen for a budget of bytes
CALIBRATED = ("w4a16-gptq",)  # written by a model that has encoded clips of the run
WITH_PACKAGES = ("gguf-q8_0", "gguf-q4_k_m", "gguf-q4_0")  # that have `require`: the others are not imported to ask


def require(name: str) -> None:
    """Raise FamilyError where writing a format needs a package that is not installed."""
    if name in WITH_PACKAGES:
        get(name).require()


def require_to_translate(name: str) -> None:
    """Raise FamilyError where translating with a format needs a package that is not installed."""
    if name in WITH_PACKAGES:
        get(name).require_to_translate()


def get(name: str) -> Any:
    """`write` gives what the audit should say beside sizes, or nothing."""
    module, _, inner = FORMATS[name].partition(":")
    format_module = importlib.import_module(module)
    return getattr(format_module, inner) if inner else format_module
