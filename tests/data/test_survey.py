"""A look at a folder: counts, languages and what is missing, without decoding."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.data.survey import corpora_below, survey
from sordino.errors import DataError, UsageError
from tests.data import sounds


def folder(root: Path, table: str, *lengths: float, name: str = "texts.tsv") -> Path:
    """A table, and files a.wav, b.wav, ... of so many seconds."""
    root.mkdir(parents=True, exist_ok=True)
    for letter, length in zip("abcdef", lengths, strict=False):
        sounds.save(root / f"{letter}.wav", sounds.tone(length))
    (root / name).write_text(table, encoding="utf-8")
    return root


def test_counts_and_what_no_row_names(tmp_path: Path) -> None:
    table = "audio\ttext_en\ttext_de\na.wav\tYes.\tJa.\nb.wav\tNo.\tNein.\nz.wav\tx\ty\n"
    (tmp_path / "mine" / "wav").mkdir(parents=True)
    sounds.save(tmp_path / "mine" / "wav" / "more.flac", sounds.tone(1.0))
    found = survey(folder(tmp_path / "mine", table, 1.5, 0.5, 3.0))
    assert (found.source, found.target, found.assumed) == ("en", "de", False)
    assert [clip.id for clip in found.clips] == ["a", "b"]
    assert found.seconds == pytest.approx(2.0)
    assert found.longest == pytest.approx(1.5)
    assert [file.name for file in found.unlisted] == ["c.wav", "more.flac"]
    assert [row.id for row in found.corpus.problems] == ["z.wav"]
    longer, shorter = found.outside(1.0)
    assert ([clip.id for clip in longer], shorter) == (["a"], [])


def test_slices_count_by_the_table_and_to_the_end_of_the_file(tmp_path: Path) -> None:
    table = "audio,start,seconds,text_de\na.wav,0,0.75,Ja.\na.wav,1.25,,Nein.\n"
    found = survey(folder(tmp_path, table, 2.0, name="texts.csv"))
    assert [clip.seconds for clip in found.clips] == [pytest.approx(0.75), pytest.approx(0.75)]
    assert found.assumed, "no column is of English"
    assert found.groups == 1


def test_files_that_are_no_audio(tmp_path: Path) -> None:
    place = folder(tmp_path, "audio\ttext_de\na.wav\tJa.\nb.wav\tNein.\n", 1.0)
    (place / "b.wav").write_bytes(b"RIFF of nothing")
    found = survey(place)
    assert [clip.id for clip in found.clips] == ["a"]
    assert [row.id for row in found.unreadable] == ["b"]
    (place / "a.wav").write_bytes(b"")
    with pytest.raises(DataError, match="holds no usable clip"):
        survey(place)


@pytest.mark.parametrize(
    ("columns", "options", "languages"),
    [
        ("text_en\ttext_fr", {}, ("en", "fr")),
        ("text_de\ttext_en", {}, ("en", "de")),
        ("text_en\ttext_de\ttext_zh", {"target": "Chinese"}, ("en", "zh")),
        ("text_de\ttext_en", {"source": "German"}, ("de", "en")),
        ("source_text\ttarget_text", {"target": "Swahili"}, ("en", "swahili")),
        ("sentence\ttranslation", {"source": "fr", "target": "de"}, ("fr", "de")),
    ],
)
def test_languages_by_the_columns(
    tmp_path: Path, columns: str, options: dict[str, str], languages: tuple[str, str]
) -> None:
    cells = "\t".join("x" for _ in columns.split("\t"))
    found = survey(folder(tmp_path, f"audio\t{columns}\na.wav\t{cells}\n", 1.0), **options)
    assert (found.source, found.target) == languages


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("text_en\ttext_de\ttext_zh", r"has translations into German, Chinese\. Say which: --to de"),
        ("text_en\tnotes", "has texts in English alone"),
        ("sentence\ttranslation", "does not say in which language its translations are"),
    ],
)
def test_languages_that_the_columns_leave_open(tmp_path: Path, columns: str, message: str) -> None:
    cells = "\t".join("x" for _ in columns.split("\t"))
    with pytest.raises(UsageError, match=message):
        survey(folder(tmp_path, f"audio\t{columns}\na.wav\t{cells}\n", 1.0))


def test_folders_that_may_be_meant(tmp_path: Path) -> None:
    table = "audio\ttext_de\na.wav\tJa.\n"
    folder(tmp_path / "data" / "mine", table, 1.0)
    folder(tmp_path / "data" / "texts-alone", table)
    folder(tmp_path / "runs" / "x", table, 1.0)
    (tmp_path / "runs" / "x" / "stage.json").write_text("{}")
    folder(tmp_path / "a" / "b" / "too-deep", table, 1.0)
    sounds.save(tmp_path / "audio.wav", sounds.tone(1.0))
    assert corpora_below(tmp_path) == [tmp_path / "data" / "mine"]
    inner = folder(tmp_path / "in-folders", table)
    (inner / "wav").mkdir()
    sounds.save(inner / "wav" / "a.wav", sounds.tone(1.0))
    assert corpora_below(tmp_path) == [tmp_path / "data" / "mine", inner]
