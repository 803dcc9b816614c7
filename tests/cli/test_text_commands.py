"""score: text files and rows against references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stages.runs import answer, refusal

Capsys = pytest.CaptureFixture[str]


def test_texts_that_do_not_match(tmp_path: Path, capsys: Capsys) -> None:
    one, two, bad = (tmp_path / name for name in ("one.txt", "two.txt", "bad.txt"))
    one.write_text("a\n")
    two.write_text("a\nb\n")
    bad.write_bytes(b"\xff\xfe\n")
    assert "has 1 line" in refusal(capsys, "score", one, "--references", two)
    assert "there is no file" in refusal(capsys, "score", tmp_path / "gone.txt", "--references", two)
    assert "is UTF-16" in refusal(capsys, "score", bad, "--references", one)
    assert "score: no references. Add --references FILE." in refusal(capsys, "score", one)
    assert "there is no metric 'blue'" in refusal(capsys, "score", one, "--references", one, "--metrics", "blue")


def test_rows_are_scored_by_their_texts(tmp_path: Path, capsys: Capsys) -> None:
    """Not as lines of JSON, which would score low and look like an answer."""
    texts = ["Der Zug ist spät.", "Ja, morgen um acht Uhr."]
    references, rows, plain = (tmp_path / name for name in ("ref.txt", "rows.jsonl", "plain.txt"))
    references.write_text("Der Zug ist zu spät.\nJa, morgen um neun Uhr.\n")
    plain.write_text("".join(text + "\n" for text in texts))
    rows.write_text("".join(json.dumps({"id": "x", "text": text, "tokens": 4}) + "\n" for text in texts))
    of_rows = answer(capsys, "score", rows, "--references", references)
    assert of_rows == answer(capsys, "score", plain, "--references", references)
    rows.write_text('{"id": "x"}\n"Ja."\n')
    assert "rows.jsonl:1: the row lacks 'text'" in refusal(capsys, "score", rows, "--references", references)


def test_what_is_measured_can_be_chosen(tmp_path: Path, capsys: Capsys) -> None:
    file = tmp_path / "zh.txt"
    file.write_text("火车晚点了。\n")
    scores = answer(capsys, "score", file, "--references", file, "--to", "zh", "--metrics", "BLEU,chrF")["scores"]
    assert [(score["name"], round(score["value"])) for score in scores] == [("bleu", 100), ("chrf", 100)]
    assert "tok:zh" in scores[0]["signature"]
