"""Each health rule on a text that has the fault, on one that only looks like it, and on a reference with it."""

import json

import pytest

from sordino.errors import DataError
from sordino.metrics.health import Health, check

GERMAN = "Wir entfernen die Schichten, die wir nicht brauchen."
CHINESE = "我们移除不需要的层，然后训练模型。"


def faults(text, reference=GERMAN, language="de"):
    return {rule for rule, number in check([text], [reference], language, ["clip"]).counts.items() if number}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (" ", "empty"),
        ("Wir entfernen die Schichten,\ndie wir nicht brauchen.", "newline"),
        ("Wir entfernen die die die die die Schichten.", "repetition"),
        ("Wir brauchen nein, nein, nein, nein.", "repetition"),
        ("The translation is: Wir entfernen die Schichten.", "preamble"),
        ("Die Übersetzung lautet: Wir entfernen die Schichten.", "preamble"),
        ("Sure! Here is the German translation: Wir entfernen die Schichten.", "preamble"),
        ("Мы удаляем слои, которые нам не нужны вообще.", "script"),
        ("Wir entfernen.", "length"),
        (f"{GERMAN} {GERMAN[::-1]} {GERMAN.upper()}", "length"),
    ],
)
def test_german_faults(text, rule):
    assert faults(text) == {rule}
    if text.strip():
        assert faults(text, reference=text) == set()  # a text that is meant to be so is not at fault


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("We remove layers.", "script"),
        ("我们移除移除移除移除移除不需要的层，训练。", "repetition"),
        ("翻译：我们移除不需要的层，然后训练模型。", "preamble"),
        ("以下是中文翻译：我们移除不需要的层，然后训练。", "preamble"),
    ],
)
def test_chinese_faults(text, rule):
    assert faults(text, CHINESE, "Chinese") == {rule}


@pytest.mark.parametrize(
    "text",
    [
        GERMAN,
        GERMAN + "\n",
        "Wir entfernen die Schichten, die die Übersetzung nicht braucht ...",
        "Übersetzungen sind unser Thema, die Schichten entfernen wir.",
        "BERT und GPT-2 haben Schichten, 1000 000 davon.",
    ],
)
def test_sound_german_has_no_faults(text):
    assert faults(text) == set()


def test_sound_chinese_with_latin_names_has_no_faults():
    assert faults("我们移除 BERT 不需要的层，然后训练模型。", CHINESE, "zh") == set()


def test_compression_finds_long_loops_without_a_repeated_row():
    lines = [f"Schicht {number % 3} und Schicht {number % 2} und" for number in range(40)]
    assert "repetition" in faults(" ".join(lines))


def test_counts_and_examples():
    health = check([GERMAN, "", "", GERMAN], [GERMAN] * 4, "de", ["a", "b", "c", "d"])
    assert (health.segments, health.counts["empty"], health.total) == (4, 2, 2)
    assert health.examples["empty"] == ("b", "c")
    assert Health.from_json(json.loads(json.dumps(health.to_json()))) == health
    many = check([""] * 9, [GERMAN] * 9, "de", [str(number) for number in range(9)])
    assert (many.counts["empty"], many.examples["empty"]) == (9, ("0", "1", "2", "3", "4"))


def test_unequal_lengths_are_refused():
    with pytest.raises(DataError, match="1 translations came with 2 clip ids"):
        check([GERMAN], [GERMAN], "de", ["a", "b"])


SOURCE = "We remove the layers that we do not need, Katrin."


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("We remove the layers we do not need.", {"untranslated", "language"}),
        ("Wir remove layers that need Katrin.", {"untranslated"}),
        ("Wir entfernen jene Schichten, Katrin.", set()),
        ("We remove.", {"length"}),  # too short to tell
        ("Nous enlevons les couches dont nous ne sommes pas certains.", {"language"}),
    ],
)
def test_untranslated_and_wrong_language(text, rules):
    counts = check([text], [GERMAN[:-1] + ", Katrin."], "de", ["clip"], [SOURCE]).counts
    assert {rule for rule, number in counts.items() if number} == rules


def test_untranslated_needs_the_source_and_copied_names_are_none():
    names = "BERT GPT Voxtral Whisper"
    for sources in ([names], [None], None):
        assert check([names], [names], "de", ["clip"], sources).total == 0
    counts = check(["We remove layers today"], [CHINESE], "zh", ["clip"], ["We remove layers today"]).counts
    assert counts["untranslated"] == counts["script"] == 1
    with pytest.raises(DataError, match="1 translations came with 2 source texts"):
        check([GERMAN], [GERMAN], "de", ["a"], ["b", "c"])
