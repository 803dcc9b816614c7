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


def translation(text: str, name: str = "a", **changes: Any) -> Translation:
    return dataclasses.replace(Translation(name, text, False, REFERENCE, "The train is late again today."), **changes)


@pytest.mark.parametrize(
    ("one", "limits", "expected"),
    [
        (translation(REFERENCE, cut=True), {"cut": True}, ("cut", None)),
        (translation(REFERENCE, cut=True), {}, None),
        (translation(" "), {}, ("empty", None)),
        (translation(REFERENCE[:10]), {"max_ratio": 3.0}, ("ratio", round(10 / 33, 4))),
        (translation(REFERENCE[:11]), {"max_ratio": 3.0}, None),
        (translation(REFERENCE * 4), {"max_ratio": 3.9}, ("ratio", 4.0)),
        (translation("Der Zug Zug Zug Zug Zug ist\nspät."), {"health": True}, ("health", "newline, repetition")),
        (
            translation("Der Zug kommt heute wieder zu spät."),
            {"health": True, "max_ratio": 1.2, "min_chrf": 60.0},
            None,
        ),
        (translation("Wir essen heute ein Brot."), {"min_chrf": 60.0}, ("chrf", 15.0)),
    ],
)
def test_each_rule(one: Translation, limits: dict[str, Any], expected: tuple[str, Any] | None) -> None:
    verdict = reasons([one], "de", dataclasses.replace(NONE, **limits)).get("a")
    if expected and expected[0] == "chrf":
        assert verdict is not None
        assert verdict[0] == "chrf"
        assert 5 < float(verdict[1] or 0) < 60
    else:
        assert verdict == expected


def test_the_first_rule_that_is_broken_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """And COMET, the dear one, sees only what the others left, in its order."""
    seen: list[list[str]] = []

    def segments(self: Any, model: Any, sources: list[str], texts: list[str], references: list[str]) -> list[float]:
        seen.append(texts)
        return [0.9, 0.1]

    monkeypatch.setattr(comet.Comet, "_segments", segments)
    monkeypatch.setattr(comet, "_load", lambda *_: (None, "comet:made-up"))
    rows = [
        translation("", "cut", cut=True),
        translation("Der Zug ist heute zu spät.", "good"),
        translation("Zug", "short"),
        translation("Der Zug ist heute\nzu spät.", "line"),
        translation("Xyz abc uvw ghi jkl mno pqr st.", "other"),
        translation("Der Zug ist heute wieder spät.", "bad"),
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
        reasons([translation("Der Zug.", reference="")], "de", dataclasses.replace(NONE, min_chrf=1.0))
    assert reasons([translation("Der Zug.", reference="")], "de", NONE) == {}
    assert filters.reasons([], "de", ALL) == {}


def test_a_control_token_spelled_by_the_teacher_is_left_out() -> None:
    rows = [translation(REFERENCE, "good"), translation("Ende <|im_end|> mehr.", "bad")]
    assert reasons(rows, "de", NONE, lambda text: ["<|im_end|>"] * text.count("<|im_end|>")) == {
        "bad": ("control", "<|im_end|>")
    }
