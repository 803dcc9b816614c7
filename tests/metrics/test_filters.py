"""Every rule of the filter on a translation that breaks it, and the order of the rules."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sordino.errors import DataError
from sordino.metrics import comet, filters
from sordino.metrics.filters import Limits, Translation, reasons

NONE = Limits(False, None, False, None, None, "comet", "cpu")
ALL = Limits(True, 1.5, True, 40.0, 0.5, "comet", "cpu")
REFERENCE = "Der Zug ist heute wieder zu spät."


def said(text: str, name: str = "a", **changes: Any) -> Translation:
    return dataclasses.replace(Translation(name, text, False, REFERENCE, "The train is late again today."), **changes)


@pytest.mark.parametrize(
    ("one", "limits", "found"),
    [
        (said(REFERENCE, cut=True), {"cut": True}, ("cut", None)),
        (said(REFERENCE, cut=True), {}, None),
        (said(" "), {}, ("empty", None)),
        (said(REFERENCE[:10]), {"max_ratio": 3.0}, ("ratio", round(10 / 33, 4))),
        (said(REFERENCE[:11]), {"max_ratio": 3.0}, None),
        (said(REFERENCE * 4), {"max_ratio": 3.9}, ("ratio", 4.0)),
        (said("Der Zug Zug Zug Zug Zug ist\nspät."), {"health": True}, ("health", "newline, repetition")),
        (said("Der Zug kommt heute wieder zu spät."), {"health": True, "max_ratio": 1.2, "min_chrf": 60.0}, None),
        (said("Wir essen heute ein Brot."), {"min_chrf": 60.0}, ("chrf", 15.0)),
    ],
)
def test_each_rule(one: Translation, limits: dict[str, Any], found: tuple[str, Any] | None) -> None:
    known = reasons([one], "de", dataclasses.replace(NONE, **limits)).get("a")
    if found and found[0] == "chrf":
        assert known is not None
        assert known[0] == "chrf"
        assert 5 < float(known[1] or 0) < 60
    else:
        assert known == found


def test_the_first_rule_that_is_broken_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """And COMET, the dear one, sees only what the others left, in its order."""
    seen: list[list[str]] = []

    def segments(self: Any, model: Any, sources: list[str], texts: list[str], references: list[str]) -> list[float]:
        seen.append(texts)
        return [0.9, 0.1]

    monkeypatch.setattr(comet.Comet, "_segments", segments)
    monkeypatch.setattr(comet, "_load", lambda *_: (None, "comet:made-up"))
    rows = [
        said("", "cut", cut=True),
        said("Der Zug ist heute zu spät.", "good"),
        said("Zug", "short"),
        said("Der Zug ist heute\nzu spät.", "line"),
        said("Xyz abc uvw ghi jkl mno pqr st.", "other"),
        said("Der Zug ist heute wieder spät.", "bad"),
    ]
    found = reasons(rows, "de", ALL)
    assert {name: reason for name, (reason, _) in found.items()} == {
        "cut": "cut",
        "short": "ratio",
        "line": "health",
        "other": "chrf",
        "bad": "comet",
    }
    assert found["bad"] == ("comet", 0.1)
    assert seen == [[rows[1].text, rows[5].text]]


def test_a_rule_that_lacks_its_text_says_so() -> None:
    with pytest.raises(DataError, match="no reference"):
        reasons([said("Der Zug.", reference="")], "de", dataclasses.replace(NONE, min_chrf=1.0))
    assert reasons([said("Der Zug.", reference="")], "de", NONE) == {}
    assert filters.reasons([], "de", ALL) == {}
