"""Which metrics there are, by the names that recipes use.

A new metric is one file beside overlap.py and one line in METRICS; it is imported when it is first asked for.
"""

from __future__ import annotations

import difflib
import importlib

from sordino.errors import RecipeError
from sordino.metrics.base import Metric

METRICS = {
    "bleu": "sordino.metrics.overlap:BLEU",
    "chrf": "sordino.metrics.overlap:CHRF",
    "chrf++": "sordino.metrics.overlap:CHRFPP",
}
ALIASES = {"sacrebleu": "bleu", "chrf2": "chrf", "chrfpp": "chrf++", "chrf2++": "chrf++"}


def canonical(name: str) -> str:
    """Registry key of a metric's name in any case: 'chrF' -> 'chrf', 'chrFpp' -> 'chrf++'. Raises RecipeError."""
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key in METRICS:
        return key
    near = difflib.get_close_matches(key, [*METRICS, *ALIASES], n=1, cutoff=0.5)
    hint = f"Did you mean '{ALIASES.get(near[0], near[0])}'? " if near else ""
    raise RecipeError(f"there is no metric '{name}'.", f"{hint}Metrics: {', '.join(METRICS)}.")


def get(name: str) -> Metric:
    """The metric of a name, case aside. Raises RecipeError with the nearest name for an unknown one."""
    module, attribute = METRICS[canonical(name)].split(":")
    metric: Metric = getattr(importlib.import_module(module), attribute)
    return metric
