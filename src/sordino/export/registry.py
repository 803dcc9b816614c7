"""Export formats: name -> module with `write(source, directory)` and LOADS_WITH."""

from __future__ import annotations

import importlib
from types import ModuleType

FORMATS = {"bf16": "sordino.export.bf16", "nf4": "sordino.export.nf4", "mixed": "sordino.export.packed"}


def get(name: str) -> ModuleType:
    return importlib.import_module(FORMATS[name])
