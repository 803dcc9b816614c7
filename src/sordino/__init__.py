"""sordino: smaller audio language models, same voice. See README.md.

import sordino

model = sordino.load("runs/demo-en-de/60-student")
print(sordino.translate(model, "recording.wav").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sordino.api import Recipe, encode, export, inspect, load, prune, rank_layers, run, score, translate

__version__ = "0.1.0"
__all__ = ["Recipe", "encode", "export", "inspect", "load", "prune", "rank_layers", "run", "score", "translate"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'sordino' has no attribute '{name}'")
    return getattr(import_module("sordino.api"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
