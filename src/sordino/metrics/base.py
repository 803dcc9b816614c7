"""What a score is: a value with its signature, its uncertainty and the segments it came from.

A number alone cannot be compared with anything: the signature says how it was made, the interval how far
another sample of clips could have moved it, the segments which clips made it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sordino.errors import DataError
from sordino.runtime.terminal import quoted

BOOTSTRAP = 1000  # resamples behind an interval
COVERAGE = 95.0  # per cent of the resampled scores inside the interval


@dataclass(frozen=True)
class Score:
    """One metric of one system on one set of clips.

    name: key of the metric registry. value: corpus score, 0 to 100 for the overlap metrics.
    signature: the scorer's own, enough to repeat the score elsewhere.
    interval: 95 % bootstrap percentile interval (low, high), or None where none was asked for.
    segments: score of each clip in the order given, or None where only the corpus score was asked for.
    """

    name: str
    value: float
    signature: str
    interval: tuple[float, float] | None
    segments: tuple[float, ...] | None

    def to_json(self) -> dict[str, Any]:
        """Plain values that json.dumps takes; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Score:
        """The Score that `to_json` wrote."""
        interval, segments = record["interval"], record["segments"]
        return cls(
            name=record["name"],
            value=float(record["value"]),
            signature=record["signature"],
            interval=None if interval is None else (float(interval[0]), float(interval[1])),
            segments=None if segments is None else tuple(float(value) for value in segments),
        )


class Metric(Protocol):
    """What the registry hands out. `label` is the name in print: 'BLEU', 'chrF', 'chrF++'.

    decimals: digits worth printing. is_mean: the corpus score is the mean of the segments'. needs_sources: `score`
    refuses to work without source texts; the others do not look at them.
    """

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def decimals(self) -> int: ...
    @property
    def is_mean(self) -> bool: ...
    @property
    def needs_sources(self) -> bool: ...

    def corpus(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        target_lang: str,
        sources: Sequence[str | None] | None = None,
    ) -> float:
        """The corpus score alone, for search loops. Raises DataError as `score` does."""
        ...

    def score(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        target_lang: str,
        *,
        sources: Sequence[str | None] | None = None,
        bootstrap: int = BOOTSTRAP,
        seed: int = 0,
    ) -> Score:
        """Corpus score, segment scores and interval. Raises DataError as `check_pairs` does."""
        ...


def check_pairs(hypotheses: Sequence[str], references: Sequence[str | None]) -> None:
    """Refuse what cannot be scored: an empty set, unequal lengths, a missing or blank reference (DataError).

    An empty hypothesis is scored: the system said nothing, and that is its score.
    """
    if len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} translations cannot be scored against {len(references)} references.",
            "Give one translation and one reference per clip, in the same order.",
        )
    if not hypotheses:
        raise DataError("there are no translations to score.", "Check that the split is not empty.")
    for index, (hypothesis, reference) in enumerate(zip(hypotheses, references, strict=True)):
        _check_text(f"translation {index}", hypothesis, "Translate the set again.")
        if reference is None or (isinstance(reference, str) and not reference.strip()):
            raise DataError(
                f"clip {index} of {len(references)} has no reference translation.",
                "Give it a target_text in the manifest, or leave the clip out.",
            )
        _check_text(f"reference {index}", reference, "Give the clip a target_text in the manifest.")


def _check_text(what: str, text: object, remedy: str) -> None:
    """Raise DataError for what is no text, as pandas' NaN, and for halves of surrogate pairs, which no file holds."""
    if not isinstance(text, str):
        raise DataError(f"{what} is {quoted(text, 60)}, not a text.", remedy)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{what} holds half of a surrogate pair at character {error.start}.", remedy) from None


def form_note(hypotheses: Sequence[str], references: Sequence[str]) -> str | None:
    """A sentence where letters with marks are written in two ways, so that the same words do not match; else None.

    'ü' is one character in Unicode's form C and two, u and a mark, in form D.
    """
    apart = [
        i
        for i, pair in enumerate(zip(hypotheses, references, strict=True))
        if len({unicodedata.is_normalized("NFC", text) for text in pair}) > 1
    ]
    if not apart:
        return None
    return (
        f"{len(apart):,} of {len(references):,} translations are in another Unicode form than their references (the "
        f"first is number {apart[0] + 1}), and the same letters do not match. Bring both files into form NFC"
    )
