"""Outputs with their wrapping taken off: preambles, line breaks, quotation marks around the whole.

A translation that opens with "The translation is:" is a fault of the system, so scores are given for the raw
outputs. Cleaned scores stand beside them and tell how much of a low score is wrapping. Nothing inside a text is
changed, and a mark that the source's own text may carry (a quotation inside a sentence) stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sordino.metrics.health import PREAMBLE

QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "»": "«", "「": "」", "『": "』", "'": "'", "‘": "’", "‚": "‘"}
SEPARATORS = ":：\n"
REACH = 60  # characters after the preamble in which its colon may stand


@dataclass(frozen=True)
class Cleaned:
    """texts: as many as came in. counts: how many were changed by each rule."""

    texts: tuple[str, ...]
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {"counts": asdict(self)["counts"]}


def strip_newlines(text: str) -> str:
    """Line breaks and the white space around them become one space."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def strip_preamble(text: str) -> str:
    """Without the words about the translation, where a colon or line break ends them and something follows."""
    preamble = PREAMBLE.match(text)
    if preamble is None:
        return text
    end = preamble.end()
    if text[:end].rstrip()[-1:] not in SEPARATORS:
        places = [text.find(mark, end, end + REACH) for mark in SEPARATORS]
        places = [place for place in places if place >= 0]
        if not places:
            return text  # "The translation is hard": no telling where a preamble would end
        end = min(places) + 1
    rest = text[end:].strip()
    return rest or text


def strip_quotes(text: str) -> str:
    """Without one pair of quotation marks around the whole text; not where the same marks stand inside too."""
    bare = text.strip()
    if len(bare) < 3 or QUOTES.get(bare[0]) != bare[-1]:
        return text
    inside = bare[1:-1]
    return text if bare[0] in inside or bare[-1] in inside else inside.strip()


RULES = {"preamble": strip_preamble, "newline": strip_newlines, "quotes": strip_quotes}


def clean(texts: Sequence[str]) -> Cleaned:
    """Apply the rules in order: preamble (a line break may end it), newline, quotes."""
    counts = dict.fromkeys(RULES, 0)
    cleaned = []
    for text in texts:
        done = text
        for rule, change in RULES.items():
            changed = change(done)
            counts[rule] += changed.strip() != done.strip()
            done = changed
        cleaned.append(done.strip())
    return Cleaned(tuple(cleaned), counts)
