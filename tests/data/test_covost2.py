"""CoVoST 2: prepared and published tables give the same clips, by speaker, with the corpus's own splits."""

from pathlib import Path

import pytest

from sordino.data.audio import duration
from sordino.data.checks import check_audio
from sordino.data.corpora.base import Corpus
from sordino.data.corpora.covost2 import load
from sordino.errors import DataError

from .layouts import covost, seconds, tsv


def texts(corpus: Corpus) -> list[tuple[str | None, str | None]]:
    return [(one.source_text, one.target_text) for one in corpus.clips]


@pytest.mark.parametrize("prepared", [True, False])
def test_four_recordings(tmp_path: Path, prepared: bool) -> None:
    corpus = load(covost(tmp_path / "covost2", prepared), "en", "de")
    assert [one.id for one in corpus.clips] == [f"common_voice_en_{n}" for n in (1, 2, 3, 4)]
    assert texts(corpus)[:2] == [("Hello there.", "Hallo."), ('He said "no".', 'Er sagte "nein".')]
    assert [one.group for one in corpus.clips] == [letter * 128 for letter in "aabc"]
    assert list(corpus.splits.values()) == ["train", "train", "dev", "test"]
    assert corpus.problems == ()
    assert all(one.seconds is None for one in corpus.clips)
    assert [round(duration(one.audio), 2) for one in corpus.clips] == [1.0 + seconds(n) for n in range(4)]
    good, bad = check_audio(corpus.clips)
    assert bad == []
    assert [round(one.seconds or 0, 2) for one in good] == [1.0 + seconds(n) for n in range(4)]


def test_parts_and_places(tmp_path: Path) -> None:
    folder = covost(tmp_path / "covost2", prepared=False)
    assert texts(load(folder, "en", "de", subsets=("test", "dev"))) == [
        ("Good morning.", "Guten Morgen."), ("Good night.", "Gute Nacht.")
    ]  # fmt: skip
    for place in ("en", "cv-corpus-4-2019-12-10/en"):  # as Common Voice is unpacked
        (folder / place).mkdir(parents=True)
        for name in ("clips", "validated.tsv"):
            next(folder.rglob(name)).rename(folder / place / name)
        assert len(load(folder, "en", "de").clips) == 4
        assert f"/{place}/clips/" in load(folder, "en", "de").clips[0].audio
        if place == "en":
            (folder / "en").rename(folder / "old")


def test_chinese_has_common_voice_s_code(tmp_path: Path) -> None:
    folder = covost(tmp_path / "covost2")
    for part in ("train", "dev", "test"):
        (folder / f"covost_v2.en_de.{part}.tsv").rename(folder / f"covost_v2.en_zh-CN.{part}.tsv")
    assert len(load(folder, "en", "Chinese").clips) == 4


def test_a_backslash_escapes_and_quotes_are_quotes(tmp_path: Path) -> None:
    folder = covost(tmp_path / "covost2")
    row = 'common_voice_en_1.mp3\tA\\\\B\t"Offen\\\tTab\tspeaker'
    tsv(folder / "covost_v2.en_de.train.tsv", ["path\tsentence\ttranslation\tclient_id", row])
    assert texts(load(folder, "en", "de", subsets=("train",))) == [("A\\B", '"Offen\tTab')]


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    folder = covost(tmp_path / "covost2")
    rows = [
        "path\tsentence\ttranslation\tclient_id",
        "common_voice_en_7.mp3\tGone.\tWeg.\tx",
        "common_voice_en_1.mp3\tEmpty.\t \tx",
        "common_voice_en_2.mp3\tNarrow.",
        "../clips/common_voice_en_2.mp3\tOut.\tRaus.\tx",
        "common_voice_en_2.mp3\tGood.\tGut.\tx",
        "common_voice_en_2.mp3\tTwice.\tZweimal.\tx",
    ]
    tsv(folder / "covost_v2.en_de.train.tsv", rows)
    corpus = load(folder, "en", "de", subsets=("train",))
    assert texts(corpus) == [("Good.", "Gut.")]
    told = [row.problem for row in corpus.problems]
    assert "covost_v2.en_de.train.tsv:2: common_voice_en_7.mp3 is not a file in" in told[0]
    for problem, part in zip(told[1:], ("empty", "as many cells", "not a file", "taken"), strict=True):
        assert part in problem
    published = covost(tmp_path / "published", prepared=False)
    (published / "clips/common_voice_en_3.mp3").unlink()
    with (published / "covost_v2.en_de.tsv").open("a") as file:
        file.write("common_voice_en_8.mp3\tNicht geprüft.\ttrain\nbroken row\n")
    corpus = load(published, "en", "de")
    assert len(corpus.clips) == 3
    told = [row.problem for row in corpus.problems]
    assert "as many cells" in told[0]
    assert "common_voice_en_3.mp3 is not a file" in told[1]
    assert "common_voice_en_8.mp3 is not in" in told[2]


def test_wrong_copies_are_shown_the_right_layout(tmp_path: Path) -> None:
    folder = covost(tmp_path / "covost2")
    with pytest.raises(DataError) as caught:
        load(folder, "en", "ja")
    assert "there is covost_v2.en_de.dev.tsv, covost_v2.en_de.test.tsv" in caught.value.problem
    assert "covost_v2.en_ja.{train,dev,test}.tsv    columns: path, sentence, translation, client_id" in (
        caught.value.remedy
    )
    assert "Found there: clips/, covost_v2.en_de.dev.tsv" in caught.value.remedy
    (folder / "clips").rename(folder / "audio")
    with pytest.raises(DataError, match="no clips directory"):
        load(folder, "en", "de")
    (folder / "audio").rename(folder / "clips")
    tsv(folder / "covost_v2.en_de.dev.tsv", ["path\tsentence\tclient_id", "a.mp3\tb\tc"])
    with pytest.raises(DataError, match=r"lacks the column 'translation'.*Found: path, sentence, client_id"):
        load(folder, "en", "de")
    (folder / "covost_v2.en_de.dev.tsv").write_bytes(b"path\tsentence\ttranslation\tclient_id\na\t\xff\tb\tc\n")
    with pytest.raises(DataError, match=r"en_de\.dev\.tsv:2: byte 0xff, which is not UTF-8"):
        load(folder, "en", "de")
    for file in folder.glob("*.tsv"):
        file.unlink()
    tsv(folder / "covost_v2.en_de.tsv", ["path\ttranslation\tsplit", "a.mp3\tb\ttrain"])
    with pytest.raises(DataError, match=r"no validated\.tsv beside"):
        load(folder, "en", "de")
    with pytest.raises(DataError, match="no part 'eval'"):
        load(covost(tmp_path / "other"), "en", "de", subsets=("eval",))
    with pytest.raises(DataError, match="subsets"):
        load(folder, "en", "de", "a.tsv")
