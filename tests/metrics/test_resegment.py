"""Resegmentation: texts cut elsewhere come back as the references are cut, talk by talk."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from sordino.errors import DataError
from sordino.inference import scoring
from sordino.languages import has_spaces
from sordino.metrics import resegment
from tests.stages.runs import answer, refusal

WORDS = ("der", "die", "Hund", "Katze", "läuft", "schläft", "heute", "immer", "nicht", "rot", "alt", "neu", "ist")


def talk(seed: int, lines: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(4, 12))) + f" {seed}-{i}." for i in range(lines)]


def recut(lines: list[str], size: int) -> list[str]:
    words = " ".join(lines).split()
    return [" ".join(words[i : i + size]) for i in range(0, len(words), size)]


def test_other_cuts_come_back_to_the_references() -> None:
    one, two = talk(1, 30), talk(2, 20)
    assert resegment.resegment([(recut(one, 17), one), (recut(two, 5), two)], "German") == one + two
    wrong = [line.replace("Hund", "Pferd") for line in one]
    assert resegment.resegment([(recut(wrong, 17), one)], "de") == wrong
    assert resegment.resegment([(["", ""], one)], "de") == [""] * 30
    assert resegment.resegment([(["今天天气很好。我喜欢", "GPT 你们。"], ["今天天气好。", "我喜欢你们。"])], "zh") == [
        "今天天气很好。", "我喜欢 GPT 你们。",
    ]  # fmt: skip


@pytest.mark.parametrize("code", ["zh-CN", "zh_TW", "zh-Hans", "Chinese"])
def test_a_language_is_cut_alike_by_every_name(code: str) -> None:
    references = ["请关掉灯光。", "最近的药店在哪里？", "我想要一个住两晚的房间。"]
    texts = ["".join(references).replace("药店", "药房")]
    assert resegment.resegment([(texts, references)], code) == resegment.resegment([(texts, references)], "zh")


def test_languages_without_spaces_are_aligned_by_characters() -> None:
    references = ["วันนี้อากาศดีมาก", "ฉันชอบดื่มกาแฟ ทุกวัน", "สถานีอยู่ที่ไหน"]
    assert resegment.resegment([([" ".join(references)], references)], "th-TH") == references
    assert resegment.resegment([([" ".join(references[:2]), references[2]], references)], "th") == references
    japanese = ["今日はとてもいい天気ですね。", "駅はどこですか。"]
    assert resegment.resegment([(["".join(japanese)], japanese)], "ja-JP") == japanese


@pytest.mark.parametrize(
    ("texts", "references", "problem"),
    [
        (["a", None], ["a"], "is None, not a text"),
        (["a", 5], ["a"], "is 5, not a text"),
        (["\ud800"], ["a"], "half of a surrogate pair"),
        (["a"], ["a", " "], "clip 1 of 2 has no reference"),
    ],
)
def test_what_is_no_text_is_refused(texts: Any, references: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        resegment.resegment([(texts, references)], "de")


def test_scores_of_a_talk_that_was_cut_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two talks whose segments take turns in the list; the rows are of other pieces."""
    one, two = talk(1, 12), talk(2, 12)
    reference = [line for pair in zip(one, two, strict=True) for line in pair]
    (tmp_path / "ref.de").write_text("".join(line + "\n" for line in reference), encoding="utf-8")
    listing = "".join(f"- {{wav: talk_{1 + i % 2}.wav, offset: {i}, duration: 1}}\n" for i in range(24))
    (tmp_path / "ref.yaml").write_text(listing)
    rows = [{"audio": f"/x/talk_{n}.flac", "text": t} for n, lines in ((2, two), (1, one)) for t in recut(lines, 9)]
    hypotheses = tmp_path / "hyp.jsonl"
    hypotheses.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--references", tmp_path / "ref.de", "--segments", tmp_path / "ref.yaml")
    scores = answer(capsys, "score", hypotheses, *options)["scores"]
    assert [score["value"] for score in scores] == pytest.approx([100] * 3)
    assert all(score["signature"].endswith("|resegmented:mweralign-1.4.1") for score in scores)
    (tmp_path / "hyp.txt").write_text("\n".join(recut(reference, 9)) + "\n", encoding="utf-8")
    scores = answer(capsys, "score", tmp_path / "hyp.txt", *options)["scores"]
    assert scores[0]["value"] == pytest.approx(100)
    assert "lines" in refusal(capsys, "score", tmp_path / "hyp.txt", *options[:2])  # nothing is cut unasked

    (tmp_path / "ref.yaml").write_text(listing + "- {wav: talk_1.wav, offset: 99, duration: 1}\n")
    assert "lists 25 segments, and there are 24 references" in refusal(capsys, "score", hypotheses, *options)
    (tmp_path / "ref.yaml").write_text(listing.replace("talk_2", "talk_3"))
    assert "'talk_2' is no talk of" in refusal(capsys, "score", hypotheses, *options)
    (tmp_path / "ref.yaml").write_text(listing)
    hypotheses.write_text("".join(json.dumps(row) + "\n" for row in rows if "talk_1" in row["audio"]))
    assert "holds no translation of talk_2" in refusal(capsys, "score", hypotheses, *options)
    hypotheses.write_text("no row\n")
    assert "hyp.jsonl:1: not JSON" in refusal(capsys, "score", hypotheses, *options)


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ref.de").write_text("Hallo.\n")
    (tmp_path / "ref.yaml").write_text("- {wav: a.wav, offset: 0, duration: 1}\n")
    monkeypatch.setattr(resegment, "PROGRAM", "no-such-aligner")
    with pytest.raises(DataError, match="pip install no-such-aligner"):
        scoring.score_files(tmp_path / "ref.de", tmp_path / "ref.de", "de", ["bleu"], segments=tmp_path / "ref.yaml")


@pytest.mark.parametrize(
    ("language", "spaced"),
    [
        ("zh", False),
        ("Chinese", False),
        ("zh-CN", False),
        ("ja", False),
        ("de", True),
        ("Korean", True),
        ("Swahili", True),
    ],
)
def test_languages_without_spaces(language: str, spaced: bool) -> None:
    assert has_spaces(language) is spaced
