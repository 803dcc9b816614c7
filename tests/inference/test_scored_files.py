"""`sordino score` reads texts as people have them, and names file and line where it cannot."""

from __future__ import annotations

import json
import os
import threading
import unicodedata
from pathlib import Path

import pytest

from sordino.cli import main
from tests.stages.runs import answer, refusal

TEXTS = ["Der Zug nach London fährt um halb sieben.", "Wo ist die nächste Apotheke?", "Ich möchte ein Zimmer."]


def write(file: Path, texts: list[str], encoding: str = "utf-8") -> Path:
    file.write_text("".join(text + "\n" for text in texts), encoding=encoding)
    return file


def values(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[float]:
    return [score["value"] for score in answer(capsys, "score", *words)["scores"]]


def test_a_byte_order_mark_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, marked = write(tmp_path / "a.txt", TEXTS), write(tmp_path / "b.txt", TEXTS, "utf-8-sig")
    for one, other in ((plain, plain), (plain, marked), (marked, plain), (marked, marked)):
        assert values(capsys, one, "--references", other) == pytest.approx([100] * 3)


def test_rows_are_scored_by_their_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many rows as references, which invites to forget --segments."""
    references = write(tmp_path / "talk.de", TEXTS)
    rows = [{"id": f"talk_{i}", "audio": "/x/talk.wav", "text": text} for i, text in enumerate(TEXTS)]
    segments = write(tmp_path / "segments.jsonl", [json.dumps(row) for row in rows])
    assert values(capsys, segments, "--references", references) == pytest.approx([100] * 3)
    renamed = write(tmp_path / "segments.txt", [json.dumps(row) for row in rows])
    assert "Name it segments.jsonl" in refusal(capsys, "score", renamed, "--references", references)
    manifest = [{"id": str(i), "target_text": text} for i, text in enumerate(TEXTS)]
    references = write(tmp_path / "test.jsonl", [json.dumps(row) for row in manifest])
    assert values(capsys, segments, "--references", references) == pytest.approx([100] * 3)


def test_a_blank_reference_is_named_by_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hypotheses = write(tmp_path / "h.txt", TEXTS)
    references = write(tmp_path / "r.txt", [TEXTS[0], "", TEXTS[2]])
    told = refusal(capsys, "score", hypotheses, "--references", references)
    assert f"{references}:2: the reference is blank." in told


@pytest.mark.parametrize("text", ["null", "5", '"\\ud800"', "NaN", "[" * 2000 + "]" * 2000])
def test_a_row_without_a_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    references = write(tmp_path / "r.txt", TEXTS)
    listing = write(tmp_path / "seg.yaml", [f"- {{wav: t.wav, offset: {i}, duration: 1}}" for i in range(3)])
    file = write(tmp_path / "s.jsonl", [f'{{"audio": "/x/t.wav", "text": {t}}}' for t in ('"a"', text, '"c"')])
    assert f"{file}:2: " in refusal(capsys, "score", file, "--references", references, "--segments", listing)
    assert f"{file}:2: " in refusal(capsys, "score", file, "--references", references)


@pytest.mark.parametrize("listing", ["gone.yaml", "."])
def test_a_list_that_is_no_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], listing: str) -> None:
    texts = write(tmp_path / "r.txt", TEXTS)
    told = refusal(capsys, "score", texts, "--references", texts, "--segments", tmp_path / listing)
    assert str(tmp_path / listing) in told


def test_decomposed_letters_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = write(tmp_path / "r.txt", TEXTS)
    hypotheses = write(tmp_path / "h.txt", [unicodedata.normalize("NFD", text) for text in TEXTS])
    assert main(["score", str(hypotheses), "--references", str(references)]) == 0
    assert "3 of 3 translations are in another Unicode form" in capsys.readouterr().err


def test_a_shell_s_pipe_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = write(tmp_path / "r.txt", TEXTS)
    end, start = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(start, references.read_bytes()), os.close(start)))
    writer.start()
    try:
        assert values(capsys, f"/dev/fd/{end}", "--references", references) == pytest.approx([100] * 3)
    finally:
        writer.join()
        os.close(end)


def test_a_language_with_a_region_is_aligned_and_scored_as_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = write(tmp_path / "r.zh", ["请关掉灯光。", "最近的药店在哪里？", "我想要一个住两晚的房间。"])
    hypotheses = write(tmp_path / "o.zh", ["请关闭灯光。最近的药房在哪里？我想要一间住两晚的房间。"])
    listing = write(tmp_path / "seg.yaml", [f"- {{wav: t.wav, offset: {i}, duration: 1}}" for i in range(3)])
    options = ("--references", references, "--segments", listing, "--to")
    plain = values(capsys, hypotheses, *options, "zh")
    assert plain[0] == pytest.approx(62.04, abs=0.01)
    for code in ("zh-CN", "zh_TW", "zh-Hans"):
        assert values(capsys, hypotheses, *options, code) == plain
