"""Which translations are good enough to train on, and why the others are not.

Every rule looks at one translation beside its clip's reference; the first that a translation breaks is its reason.
The dear rules come last, and see only what the others have left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def reasons(
    translations: Sequence[Translation],
    target: str,
    limits: Limits,
    control_tokens: Callable[[str], Sequence[str]] = lambda _: (),
) -> dict[str, Reason]:
    """Id -> why, for every translation that is to be left out; empty ones, and those with control tokens, always are.

    control_tokens: of a text, those that a student would be taught to say in its middle (models/control_tokens.py).
    Raises DataError where a rule needs a reference or source text that a clip lacks.
    """
    verdicts: dict[str, Reason] = {}
    for one in translations:
        if one.cut and limits.cut:
            verdicts[one.id] = "cut", None
        elif not one.text.strip():
            verdicts[one.id] = "empty", None
        elif tokens := control_tokens(one.text):
            verdicts[one.id] = "control", tokens[0]
    if limits.max_ratio is not None:
        for one in _rest(translations, verdicts):
            ratio = len(one.text.strip()) / len(one.reference.strip())
            if not 1 / limits.max_ratio <= ratio <= limits.max_ratio:
                verdicts[one.id] = "ratio", round(ratio, 4)
    if limits.health and (rest := _rest(translations, verdicts)):
        texts, references, sources = _columns(rest)
        for rule, ids in health.faults(texts, references, target, [one.id for one in rest], sources).items():
            for name in ids:
                verdicts[name] = "health", f"{verdicts[name][1]}, {rule}" if name in verdicts else rule
    if limits.min_chrf is not None:
        chrf = CHRF()
        for one in _rest(translations, verdicts):
            score = chrf.sentence_score(one.text, [one.reference]).score
            if score < limits.min_chrf:
                verdicts[one.id] = "chrf", round(score, 4)
    if limits.min_comet is not None and (rest := _rest(translations, verdicts)):
        metric = registry.get(limits.comet, limits.device)
        texts, references, sources = _columns(rest)
        segments = metric.score(texts, references, target, sources=sources, bootstrap=0).segments
        for one, value in zip(rest, segments or (), strict=True):
            if value < limits.min_comet:
                verdicts[one.id] = "comet", round(value, 6)
    return verdicts


def _rest(translations: Sequence[Translation], verdicts: dict[str, Reason]) -> list[Translation]:
    """Those that no rule has found yet; their references are looked at, so they must be there."""
    rest = [one for one in translations if one.id not in verdicts]
    if rest:
        check_pairs(*_columns(rest)[:2])
    return rest


def _columns(translations: Sequence[Translation]) -> tuple[list[str], list[str], list[str | None]]:
    """Texts, references, sources."""
    return (
        [one.text for one in translations],
        [one.reference for one in translations],
        [one.source for one in translations],
    )
