"""What can be scored: texts, as many as references, none of which is blank; and a word on Unicode's forms."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from sordino.errors import DataError
from sordino.metrics import health, overlap, registry
from sordino.metrics.base import check_pairs, form_note


@pytest.mark.parametrize(
    ("hypotheses", "references", "problem"),
    [
        (["a", float("nan")], ["a", "b"], "translation 1 is nan, not a text"),
        (["a", None], ["a", "b"], "translation 1 is None, not a text"),
        (["a", ["x"] * 10**5], ["a", "b"], "translation 1 is"),
        (["a"], [float("nan")], "reference 0 is nan, not a text"),
        (["a"], [7], "reference 0 is 7, not a text"),
        (["a"], [None], "clip 0 of 1 has no reference"),
        (["a"], [" \u3000"], "clip 0 of 1 has no reference"),
        (["ä\ud800"], ["a"], "translation 0 holds half of a surrogate pair at character 1"),
        (["a"], ["\udfff"], "reference 0 holds half of a surrogate pair"),
        (["a"], [], "1 translations cannot be scored against 0 references"),
        ([], [], "no translations"),
    ],
)
def test_what_cannot_be_scored(hypotheses: list[Any], references: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        check_pairs(hypotheses, references)
    assert len(str(caught.value)) < 300
    for name in ("bleu", "chrf"):
        with pytest.raises(DataError, match=problem):
            registry.get(name).score(hypotheses, references, "de")


def test_an_empty_translation_is_scored() -> None:
    check_pairs(["", "a"], ["x", "a"])


def test_decomposed_letters_are_told_of() -> None:
    """The same words score 36 instead of 100 BLEU where one side writes ü as two characters."""
    references = ["Ich möchte ein Zimmer für zwei Nächte.", "Wo ist die Apotheke?"]
    decomposed = [unicodedata.normalize("NFD", text) for text in references]
    note = form_note(decomposed, references)
    assert note is not None
    assert note.startswith(
        "1 of 2 translations are in another Unicode form than their references (the first is number 1)"
    )
    assert form_note(references, decomposed) is not None
    assert form_note(references, references) is None
    assert form_note(decomposed, decomposed) is None
    assert form_note(["kurz"], ["für"]) is None


@pytest.mark.parametrize("code", ["zh-CN", "zh_TW", "zh-Hans", "Chinese", "cmn"])
def test_a_language_is_scored_alike_by_every_name(code: str) -> None:
    hypotheses, references = ["请关闭灯光。", "最近的药房在哪里？"], ["请关掉灯光。", "最近的药店在哪里？"]
    for name in ("bleu", "chrf", "chrf++"):
        assert registry.get(name).score(hypotheses, references, code) == registry.get(name).score(
            hypotheses, references, "zh"
        )
    assert overlap.bleu_tokenizer(code) == "zh"
    assert overlap.bleu_tokenizer("ja-JP") == overlap.bleu_tokenizer("ja")
    wrong = health.check(["Please turn it off."], ["请关掉灯光。"], code, ["a"])
    assert wrong.counts["script"] == 1
