"""Minimum Bayes risk choice: of several translations of one clip, the one that the others agree with most.

What: every candidate stands for the reference once; a candidate's expected utility is its mean sentence chrF against
the other candidates (Kumar & Byrne 2004; chrF for machine translation: Eikema & Aziz 2022). A text that was sampled
twice speaks for itself once, and counts twice against the rest: that is how probable it is.

How: sacreBLEU's chrF, with its n-grams counted once a text and matched once a pair. Its time is quadratic in the
number of different candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from sacrebleu.metrics import CHRF


@cache
def _chrf() -> Any:
    return CHRF()


def utilities(candidates: Sequence[str]) -> list[float]:
    """Expected utility of each candidate, 0 to 100, over all others; 0 where there is no other."""
    times = Counter(candidates)
    texts = list(times)
    grams = _chrf()._extract_reference_info(texts)["ref_ngrams"]  # (texts, orders) counters
    total = dict.fromkeys(texts, 0.0)
    for i, one in enumerate(texts):
        total[one] += (times[one] - 1) * _chrf()._compute_f_score(_statistics(grams[i], grams[i])[0])
        for j in range(i):
            forth, back = _statistics(grams[i], grams[j])
            total[one] += times[texts[j]] * _chrf()._compute_f_score(forth)
            total[texts[j]] += times[one] * _chrf()._compute_f_score(back)
    others = max(1, len(candidates) - 1)
    return [total[text] / others for text in candidates]


def choose(candidates: Sequence[str]) -> int:
    """Place of the candidate of the highest expected utility, the first of equals."""
    return ranked(candidates)[0]


def ranked(candidates: Sequence[str]) -> list[int]:
    """Places of all different candidates, the one of the highest expected utility first; of equals the first."""
    values = utilities(candidates)
    first = {text: candidates.index(text) for text in dict.fromkeys(candidates)}
    return sorted(first.values(), key=lambda place: (-values[place], place))


def _statistics(one: Sequence[Counter[Any]], other: Sequence[Counter[Any]]) -> tuple[list[int], list[int]]:
    """sacreBLEU's (hypothesis, reference, match) counts of every order, and those of the pair the other way round."""
    forth: list[int] = []
    back: list[int] = []
    for mine, theirs in zip(one, other, strict=True):
        _, reference, match = _chrf()._get_match_statistics(mine, theirs)
        length = sum(mine.values())
        forth += [length if reference else 0, reference, match]
        back += [reference if length else 0, length, match]
    return forth, back
