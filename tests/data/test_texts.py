"""Texts to be scored: read from lines and rows alike, and never scored as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino.data.texts import read, refuse_blank, refuse_lengths
from sordino.errors import DataError


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "out.de"
    file.write_bytes("\ufeffEins.\r\n\nDrei\u2028vier.\x0c\n{kein JSON\n".encode())
    assert [(one.text, one.line) for one in read(file)] == [
        ("Eins.", 1), ("", 2), ("Drei\u2028vier.\x0c", 3), ("{kein JSON", 4),
    ]  # fmt: skip
    file.write_text("")
    assert read(file) == []
    file.write_text("ohne Ende")
    assert [one.text for one in read(file)] == ["ohne Ende"]


def test_rows(tmp_path: Path) -> None:
    file = tmp_path / "segments.jsonl"
    rows = [{"id": "a", "audio": "/x/talk.wav", "text": "Eins."}, {"id": "b", "text": "", "target_text": "Zwei."}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8-sig")
    assert [(one.text, one.audio) for one in read(file)] == [("Eins.", "/x/talk.wav"), ("", None)]
    file.write_text(json.dumps({"id": "a", "source_text": "One.", "target_text": "Eins."}))
    assert read(file, "references")[0].text == "Eins."
    assert read(file, "sources")[0].text == "One."
    with pytest.raises(DataError, match=r"segments\.jsonl:1: the row lacks 'text'.*id, source_text, target_text"):
        read(file)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": null}', ":2: 'text' is None, not a text"),
        ('{"text": 5}', ":2: 'text' is 5, not a text"),
        ('{"text": ["a"]}', ":2: 'text' is ['a'], not a text"),
        ('{"text": NaN}', ":2: not JSON: NaN is no number"),
        ('{"text": "\\ud800"}', ":2: half of a surrogate pair"),
        ('{"text": ' + "[" * 200_000 + "]" * 200_000 + "}", ":2: not JSON to work with: it is nested too deeply"),
        ("[1]", ":2 must hold a JSON object, and holds a list"),
        ("plain words", ":2: not JSON"),
    ],
)
def test_rows_that_are_no_texts_are_named(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "gut"}}\n{line}\n')
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl")
    assert f"{tmp_path / 'a.jsonl'}{problem}" in caught.value.problem


def test_rows_under_another_name_are_not_taken_for_texts(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text('{"id": "a", "text": "Eins."}\n')
    with pytest.raises(DataError, match=r"holds JSON objects, not texts\. Name it out\.jsonl"):
        read(tmp_path / "out.txt")


def test_a_blank_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("a b c\n\n \ng h i\n")
    texts = read(tmp_path / "r.txt", "references")
    with pytest.raises(DataError, match=r"r\.txt:2: the reference is blank, as are 1 more\."):
        refuse_blank(tmp_path / "r.txt", texts, "reference")
    refuse_blank(tmp_path / "r.txt", texts[:1], "reference")


def test_files_of_different_lengths(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n")
    (tmp_path / "b").write_text("1\n")
    one, other = read(tmp_path / "a"), read(tmp_path / "b")
    with pytest.raises(DataError, match=r"a has 2 lines, .*b has 1 lines"):
        refuse_lengths([(tmp_path / "a", one), (tmp_path / "b", other)])
    refuse_lengths([(tmp_path / "a", one), (tmp_path / "a", one)])


def test_unreadable_files(tmp_path: Path) -> None:
    for file in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError):
            read(file)
    (tmp_path / "a").write_bytes(b"eins\nz\xfcei\n")
    with pytest.raises(DataError, match=r"a:2: byte 0xfc"):
        read(tmp_path / "a")
