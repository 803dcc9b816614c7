"""Each cleaning rule on what it is for and on what it must leave alone."""

import pytest

from sordino.metrics.clean import clean

TEXT = "Wir entfernen die Schichten."


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"The translation is: {TEXT}", TEXT),
        (f"Sure! Here is the German translation:\n\n{TEXT}", TEXT),
        (f"Die Übersetzung lautet: „{TEXT}“", TEXT),
        ("以下是中文翻译：我们移除不需要的层。", "我们移除不需要的层。"),
        (f'"{TEXT}"', TEXT),
        (f"«{TEXT}»", TEXT),
        ("Wir entfernen\n  die Schichten.\n", TEXT),
    ],
)
def test_wrapping_comes_off(text, wanted):
    assert clean([text]).texts == (wanted,)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "",
        "The translation is hard",  # nothing says where a preamble would end
        "The translation is:",  # nothing would be left
        'Er sagt "ja" und "nein"',
        '"Ja", sagt er, "nein"',
        "'s",
        "Noch eins: die Schichten.",
    ],
)
def test_anything_else_stays(text):
    assert clean([text]).texts == (text,)
    assert set(clean([text]).counts.values()) == {0}


def test_counts():
    found = clean([f'The translation is: "{TEXT}"', f"{TEXT}\n{TEXT}", TEXT])
    assert found.counts == {"preamble": 1, "newline": 1, "quotes": 1}
    assert found.to_json() == {"counts": found.counts}
