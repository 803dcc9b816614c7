"""Which translations are good enough to train on, and why the others are not.

Every rule looks at one translation beside its clip's reference; the first that a translation breaks is its reason.
The dear rules come last, and see only what the others have left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics import CHRF

from sordino.metrics import health, registry
from sordino.metrics.base import check_pairs

Reason = tuple[str, str | float | None]  # (rule, what was found)


@dataclass(frozen=True)
class Translation:
    """What a teacher said of one clip. cut: it had not come to its end."""

    id: str
    text: str
    cut: bool
    reference: str
    source: str | None


@dataclass(frozen=True)
class Limits:
    """As sections.FilterSection says. comet: metric key; device: where COMET runs."""

    cut: bool
    max_ratio: float | None
    health: bool
    min_chrf: float | None
    min_comet: float | None
    comet: str
    device: str


def reasons(said: Sequence[Translation], target: str, limits: Limits) -> dict[str, Reason]:
    """Id -> why, for every translation that is to be left out; empty ones always are.

    Raises DataError where a rule needs a reference or source text that a clip lacks.
    """
    found: dict[str, Reason] = {}
    for one in said:
        if one.cut and limits.cut:
            found[one.id] = "cut", None
        elif not one.text.strip():
            found[one.id] = "empty", None
    if limits.max_ratio is not None:
        for one in _left(said, found):
            ratio = len(one.text.strip()) / len(one.reference.strip())
            if not 1 / limits.max_ratio <= ratio <= limits.max_ratio:
                found[one.id] = "ratio", round(ratio, 4)
    if limits.health and (left := _left(said, found)):
        texts, references, sources = _columns(left)
        for rule, ids in health.faults(texts, references, target, [one.id for one in left], sources).items():
            for name in ids:
                found[name] = "health", f"{found[name][1]}, {rule}" if name in found else rule
    if limits.min_chrf is not None:
        chrf = CHRF()
        for one in _left(said, found):
            score = chrf.sentence_score(one.text, [one.reference]).score
            if score < limits.min_chrf:
                found[one.id] = "chrf", round(score, 4)
    if limits.min_comet is not None and (left := _left(said, found)):
        metric = registry.get(limits.comet, limits.device)
        texts, references, sources = _columns(left)
        segments = metric.score(texts, references, target, sources=sources, bootstrap=0).segments
        for one, value in zip(left, segments or (), strict=True):
            if value < limits.min_comet:
                found[one.id] = "comet", round(value, 6)
    return found


def _left(said: Sequence[Translation], found: dict[str, Reason]) -> list[Translation]:
    """Those that no rule has found yet; their references are looked at, so they must be there."""
    left = [one for one in said if one.id not in found]
    if left:
        check_pairs(*_columns(left)[:2])
    return left


def _columns(said: Sequence[Translation]) -> tuple[list[str], list[str], list[str | None]]:
    """Texts, references, sources."""
    return [one.text for one in said], [one.reference for one in said], [one.source for one in said]
