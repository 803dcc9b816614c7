"""MBR over chrF: the utilities are sacreBLEU's sentence scores against all others, duplicates counted."""

from __future__ import annotations

import pytest
from sacrebleu.metrics import CHRF

from sordino.metrics import mbr

SAID = [
    "Der Zug ist zu spät.",
    "Der Zug kommt spät.",
    "Der Zug ist zu spät.",
    "Wir essen Brot.",
    "",
    "Der Zug ist spät.",
    "Der Zug ist zu spät.",
]


def plainly(candidates: list[str]) -> list[float]:
    """The definition, one sentence score at a time."""
    chrf = CHRF()
    found = []
    for i, one in enumerate(candidates):
        others = [other for j, other in enumerate(candidates) if j != i]
        found.append(sum(chrf.sentence_score(one, [other]).score for other in others) / len(others))
    return found


@pytest.mark.parametrize("candidates", [SAID, SAID[:2], ["", ""], ["ja", "nein", "ja"], ["一二三", "一二", "二三", ""]])
def test_utilities_are_sacrebleus_sentence_scores(candidates: list[str]) -> None:
    assert mbr.utilities(candidates) == pytest.approx(plainly(candidates), abs=1e-9)


def test_what_is_said_most_wins_and_the_first_of_equals() -> None:
    assert mbr.choose(SAID) == 0
    assert mbr.choose(["Wir essen Brot.", "Der Zug kommt.", "Der Zug kommt spät."]) == 2
    assert mbr.choose(["ab", "cd", "ef"]) == 0
    assert mbr.choose(["", "", "Der Zug", "Der Zug"]) == 2
    assert mbr.choose(["alone"]) == 0
