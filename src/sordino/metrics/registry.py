"""Which metrics there are, by the names that recipes use.

A new metric is one file beside overlap.py and one line in METRICS; it is imported when it is first asked for.
COMET takes a model after a colon: 'comet:wmt20-comet-da', 'comet:DIRECTORY'.
"""

from __future__ import annotations

import importlib

from sordino.errors import RecipeError, near_match
from sordino.metrics.base import Metric

METRICS = {
    "bleu": "sordino.metrics.overlap:BLEU",
    "chrf": "sordino.metrics.overlap:CHRF",
    "chrf++": "sordino.metrics.overlap:CHRFPP",
    "comet": "sordino.metrics.comet:COMET",
    "comet-half": "sordino.metrics.comet:COMET_HALF",
}
WITH_MODEL = ("comet", "comet-half")
ALIASES = {"sacrebleu": "bleu", "chrf2": "chrf", "chrfpp": "chrf++", "chrf2++": "chrf++"}


def canonical(name: str) -> str:
    """Registry key of a metric's name in any case: 'chrF' -> 'chrf', 'COMET:Dir' -> 'comet:Dir'. Raises RecipeError."""
    word, colon, model = name.strip().partition(":")
    key = word.strip().lower()
    key = ALIASES.get(key, key)
    if key in METRICS and (not colon or (model.strip() and key in WITH_MODEL)):
        return key + colon + model.strip()
    if key in METRICS:
        raise RecipeError(
            f"'{name}' is no metric.", f"Models are given as in comet:DIRECTORY, of {WITH_MODEL[0]} only."
        )
    near = near_match(key, [*METRICS, *ALIASES])
    hint = f"Did you mean '{ALIASES.get(near, near)}'? " if near else ""
    raise RecipeError(f"there is no metric '{name}'.", f"{hint}Metrics: {', '.join(METRICS)}.")


def get(name: str, device: str = "auto") -> Metric:
    """The metric of a name, case aside. Raises RecipeError with the nearest name for an unknown one.

    device: where a learned metric runs; the others count.
    """
    key, _, model = canonical(name).partition(":")
    module, attribute = METRICS[key].split(":")
    metric = getattr(importlib.import_module(module), attribute)
    chosen: Metric = metric.of(model, device) if key in WITH_MODEL else metric
    return chosen
