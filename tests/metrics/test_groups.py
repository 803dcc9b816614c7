"""Scores by talk."""

import pytest

from sordino.metrics import groups, registry
from sordino.metrics.base import Score

HYPOTHESES = ["ein Haus", "ein Hund", "zwei Katzen", "drei"]
REFERENCES = ["ein Haus", "der Hund", "zwei Kater", "vier"]


def test_deal():
    assert groups.deal(["a", "b", "a", None, "b", "c"]) == {"a": [0, 2], "b": [1, 4]}
    assert groups.deal([None, None]) == "the clips name no group (talk or speaker)"
    assert groups.deal(["a", "b"]) == "each of the 2 groups is a single clip"
    assert groups.deal([str(i // 2) for i in range(102)]) == "there are 51 groups, more than 50"
    assert len(groups.deal([str(i // 2) for i in range(100)])) == 50


def test_scores_are_those_of_the_clips_alone():
    chrf = registry.get("chrf")
    whole = chrf.score(HYPOTHESES, REFERENCES, "de", bootstrap=0)
    found = groups.scores(chrf, whole, HYPOTHESES, REFERENCES, "de", {"x": [0, 2], "y": [1, 3]})
    assert found["x"] == chrf.corpus(["ein Haus", "zwei Katzen"], ["ein Haus", "zwei Kater"], "de")
    assert found["x"] != found["y"]


def test_means_are_taken_from_the_segments():
    comet = registry.get("comet")  # its model is not looked for
    whole = Score("comet", 0.5, "s", None, (0.1, 0.2, 0.7, 1.0))
    found = groups.scores(comet, whole, HYPOTHESES, REFERENCES, "de", {"x": [0, 2], "y": [1, 3]})
    assert found == pytest.approx({"x": 0.4, "y": 0.6})
