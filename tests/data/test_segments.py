"""MuST-C and IWSLT: talks are sliced by their lists of segments, which are parsed in blocks."""

from pathlib import Path

import numpy as np
import pytest

from sordino.data.audio import load_clip
from sordino.data.checks import check_audio
from sordino.data.corpora import iwslt, mustc, order, segments
from sordino.errors import DataError

from .layouts import mustc as write_mustc
from .layouts import tsv
from .sounds import save, tone


@pytest.fixture
def ted(tmp_path: Path) -> Path:
    return write_mustc(tmp_path / "mustc")


@pytest.fixture
def tst(tmp_path: Path) -> Path:
    folder = tmp_path / "tst"
    (folder / "wav").mkdir(parents=True)
    for name in ("talk_b", "talk_a"):
        save(folder / "wav" / f"{name}.wav", tone(2.0))
    text = """
        - wav: talk_b.wav
          offset: 0.5
          duration: 1.0
        - {wav: talk_a.wav, offset: 0, duration: 0.5}
        - {wav: talk_a.wav, offset: 1, duration: 0.5}
    """
    (folder / "tst.yaml").write_text("\n".join(line[8:] for line in text.splitlines()).strip() + "\n")
    tsv(folder / "tst.en", ["One.", "Two.", "Three."])
    tsv(folder / "tst.de", ["Eins.", "Zwei.", "Drei."])
    return folder


def test_mustc(ted: Path) -> None:
    corpus = mustc.load(ted, "en", "de")
    assert [one.id for one in corpus.clips] == [
        *(f"train/ted_0_{i}" for i in range(3)), *(f"dev/ted_1_{i}" for i in range(3)),
        *(f"tst-COMMON/ted_2_{i}" for i in range(3)),
    ]  # fmt: skip
    assert list(corpus.splits.values()) == ["train"] * 3 + ["dev"] * 3 + ["test"] * 3
    one = corpus.clips[1]
    assert (one.start, one.seconds, one.group) == (0.75, 0.5, "ted_0")
    assert (one.source_text, one.target_text) == ("Part train, line 1.", "Teil train, Zeile\u20281.")
    whole = tone(2.0)
    np.testing.assert_allclose(load_clip(one), whole[12_000:20_000], atol=1e-4)
    good, bad = check_audio(corpus.clips)
    assert bad == []
    assert tuple(good) == corpus.clips
    for inner in ("en-de", "en-de/data"):
        assert mustc.load(ted / inner, "en", "de") == corpus
    harder = mustc.load(ted, "English", "German", subsets=("tst-HE",))
    assert set(harder.splits.values()) == {"test"}
    assert len(harder.clips) == 3


def test_mustc_rows_that_cannot_be_used(ted: Path) -> None:
    txt = ted / "en-de/data/train/txt"
    rows = [
        "- {duration: 0.5, offset: 0.25, wav: ted_0.wav}",
        "- {duration: 0.5, wav: ted_0.wav}",
        "- {duration: half, offset: 0.25, wav: ted_0.wav}",
        "- {duration: 0.5, offset: 0.25, wav: ted_77.wav}",
        "- ted_0.wav",
        "- {duration: 0.0, offset: 0.25, wav: ted_0.wav}",
        "- {duration: 0.5, offset: 0.25, wav: ted_0.wav}",
    ]
    tsv(txt / "train.yaml", rows)
    tsv(txt / "train.en", ["x"] * 7)
    tsv(txt / "train.de", ["y"] * 6 + [""])
    corpus = mustc.load(ted, "en", "de", subsets=("train",))
    assert [one.id for one in corpus.clips] == ["train/ted_0_0"]
    told = [row.problem for row in corpus.problems]
    for problem, part in zip(
        told, ("lacks offset", "found 'half'", "ted_77.wav is not a file", "not a mapping", "above 0", "empty"),
        strict=True,
    ):  # fmt: skip
        assert part in problem
    assert told[0].startswith("train.yaml segment 2: ")


def test_mustc_wrong_copies_are_shown_the_right_layout(ted: Path) -> None:
    with pytest.raises(DataError) as caught:
        mustc.load(ted, "en", "fr")
    assert "Found there: en-de/" in caught.value.remedy
    assert "en-fr/data/{train,dev,tst-COMMON}/txt/{train,dev,tst-COMMON}.yaml" in caught.value.remedy
    with pytest.raises(DataError, match=r"no train\.fr.*Languages found: de, en"):
        mustc.load(ted / "en-de", "en", "fr")
    with pytest.raises(DataError, match=r"no part 'tst2019'.*Found: train, dev, tst-COMMON, tst-HE"):
        mustc.load(ted, "en", "de", subsets=("tst2019",))
    with pytest.raises(DataError, match="subsets"):
        mustc.load(ted, "en", "de", "train.yaml")
    txt = ted / "en-de/data/train/txt"
    (txt / "train.de").write_text("Eine Zeile.\n")
    with pytest.raises(DataError, match=r"lists 3 segments.*train\.en has 3, train\.de has 1\."):
        mustc.load(ted, "en", "de")
    tsv(txt / "train.de", ["a", "b", "c", "d"])
    with pytest.raises(DataError, match=r"lists 3 segments.*train\.de has 4"):
        mustc.load(ted, "en", "de")
    (txt / "train.de").write_bytes(b"a\nb\n\xff\n")
    with pytest.raises(DataError, match=r"train\.de:3: byte 0xff, which is not UTF-8"):
        mustc.load(ted, "en", "de")
    (ted / "en-de/data/train/wav").rename(ted / "elsewhere")
    with pytest.raises(DataError, match="no wav directory"):
        mustc.load(ted, "en", "de")


def test_lists_are_parsed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "---\n# times in seconds\n" + "".join(
        f"- {{duration: {i}.5, wav: '{i}: talk.wav'}}\n" if i % 3 else f"- duration: {i}.5\n  wav: '{i}: talk.wav'\n"
        for i in range(50)
    )
    (tmp_path / "a.yaml").write_text(text)
    expected = [{"duration": f"{i}.5", "wav": f"{i}: talk.wav"} for i in range(50)]
    for lines in (1, 2, 7, 1000):
        monkeypatch.setattr(segments, "BLOCK_LINES", lines)
        assert list(segments.entries(tmp_path / "a.yaml")) == expected
    monkeypatch.setattr(segments, "BLOCK_LINES", 7)
    (tmp_path / "a.yaml").write_text(text + "- {wav: cut\n")
    number = text.count("\n") + 1
    with pytest.raises(DataError, match=rf"a\.yaml:{number + 1}: not YAML|a\.yaml:{number}: not YAML"):
        list(segments.entries(tmp_path / "a.yaml"))
    for wrong in ("wav: talk.wav\n", "just words\n"):
        (tmp_path / "a.yaml").write_text(wrong)
        with pytest.raises(DataError, match=r"a\.yaml:1: not a list"):
            list(segments.entries(tmp_path / "a.yaml"))


def test_iwslt(tst: Path) -> None:
    corpus = iwslt.load(tst, "en", "de")
    assert [(one.id, one.start, one.seconds) for one in corpus.clips] == [
        ("talk_b_0", 0.5, 1.0), ("talk_a_0", 0.0, 0.5), ("talk_a_1", 1.0, 0.5)
    ]  # fmt: skip
    assert [(one.source_text, one.target_text, one.group) for one in corpus.clips] == [
        ("One.", "Eins.", "talk_b"), ("Two.", "Zwei.", "talk_a"), ("Three.", "Drei.", "talk_a")
    ]  # fmt: skip
    assert corpus.splits == {}
    assert check_audio(corpus.clips)[1] == []
    (tst / "FILE_ORDER").write_text("talk_b.wav\ntalk_a.wav\n")
    assert iwslt.load(tst, "en", "de") == corpus
    (tst / "tst.en").unlink()
    for file in (tst / "wav").iterdir():
        file.rename(tst / file.name)
    moved = iwslt.load(tst, "en", "de", "tst.yaml").clips
    assert [one.source_text for one in moved] == [None] * 3
    assert moved[0].audio == str(tst / "talk_b.wav")


def test_iwslt_wrong_folders(tst: Path, tmp_path: Path) -> None:
    (tst / "FILE_ORDER").write_text("talk_a.wav\ntalk_b.wav\n")
    with pytest.raises(DataError, match="not in the order of FILE_ORDER"):
        iwslt.load(tst, "en", "de")
    (tst / "FILE_ORDER").unlink()
    with pytest.raises(DataError, match=r"has no tst\.fr.*Found: tst\.de, tst\.en, tst\.yaml"):
        iwslt.load(tst, "en", "fr")
    (tst / "other.yml").write_text("[]\n")
    with pytest.raises(DataError, match=r"holds 2 lists.*other\.yml, tst\.yaml"):
        iwslt.load(tst, "en", "de")
    with pytest.raises(DataError, match=r"none\.yaml is not a file"):
        iwslt.load(tst, "en", "de", "none.yaml")
    tsv(tst / "other.de", ["x"])
    with pytest.raises(DataError, match="holds no segments"):
        iwslt.load(tst, "en", "de", "other.yml")
    with pytest.raises(DataError, match=r"Expected:\n  NAME\.yaml"):
        iwslt.load(tst / "wav", "en", "de")


@pytest.mark.parametrize(
    "order",
    [
        b"talk_a.wav\ntalk_b.wav\n",
        b"talk_a\ntalk_b\n",  # names without a suffix
        b"talk_a.en\r\ntalk_b.en\r\n",  # of the texts
        b"\xef\xbb\xbftalk_a.wav\ntalk_b.wav\n",  # a byte order mark
        b"wav/talk_a.wav\nwav/talk_b.wav\n",
    ],
)
def test_a_list_in_another_order_is_refused_however_the_order_spells_names(tst: Path, order: bytes) -> None:
    (tst / "FILE_ORDER").write_bytes(order)
    with pytest.raises(DataError, match="not in the order of FILE_ORDER"):
        iwslt.load(tst, "en", "de")
    turned = b"".join(reversed(order.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)))
    (tst / "FILE_ORDER").write_bytes(turned)
    assert len(iwslt.load(tst, "en", "de").clips) == 3


@pytest.mark.parametrize(
    ("order", "problem"),
    [
        (b"talk_b.wav\ntalk_a.wav\ntalk_c.wav\n", "nothing is there of talk_c.wav"),
        (b"talk_b.wav\n", "it does not name talk_a.wav"),
        (b"1\n2\n", "it does not name talk_b.wav, talk_a.wav; nothing is there of 1, 2"),
        (b"talk_b.wav\ntalk_a.wav\ntalk_b.wav\n", "names talk_b.wav twice"),
        (b"talk_b\ntalk_a\ntalk_b.wav\n", "names talk_b.wav twice"),
        ("talk_b.wav\nVorträge\n".encode("latin-1"), "FILE_ORDER:2: byte 0xe4, which is not UTF-8"),
        ("talk_b.wav\n".encode("utf-16"), "is UTF-16"),
    ],
)
def test_an_order_that_is_not_of_these_recordings(tst: Path, order: bytes, problem: str) -> None:
    (tst / "FILE_ORDER").write_bytes(order)
    with pytest.raises(DataError) as caught:
        iwslt.load(tst, "en", "de")
    assert problem in caught.value.problem
    assert caught.value.remedy


def test_recordings_without_segments_may_be_named_in_the_order(tst: Path) -> None:
    save(tst / "wav" / "silence.wav", tone(1.0))
    (tst / "FILE_ORDER").write_text("talk_b\nsilence\ntalk_a\n")
    assert len(iwslt.load(tst, "en", "de").clips) == 3


def test_names_with_dots_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "order").write_text("2022.acl-long.268\n2022.acl-long\n2022.acl-long.10.en\n")
    names = ["2022.acl-long.wav", "2022.acl-long.10.wav", "2022.acl-long.268.wav"]
    assert order.ranks(tmp_path / "order", names) == dict(zip(names, (1, 2, 0), strict=True))
    (tmp_path / "order").write_text("a\n")
    with pytest.raises(DataError, match="does not name"):  # a.wav or a.flac?
        order.ranks(tmp_path / "order", ["a.wav", "a.flac"])


def test_side_files_of_macos_are_passed_over(tst: Path) -> None:
    before = iwslt.load(tst, "en", "de")
    (tst / "._tst.yaml").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    (tst / "._tst.de").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    (tst / "__MACOSX").mkdir()
    (tst / "__MACOSX" / "other.yaml").write_text("- x\n")
    assert iwslt.load(tst, "en", "de") == before


def test_chinese_texts_by_any_name(tst: Path) -> None:
    tsv(tst / "tst.zh", ["一", "二", "三"])
    assert iwslt.load(tst, "en", "zh-CN").clips[0].target_text == "一"
    tsv(tst / "tst.zh-TW", ["壹", "貳", "參"])
    assert iwslt.load(tst, "en", "zh-TW").clips[0].target_text == "壹"
    assert iwslt.load(tst, "en", "zh-CN").clips[0].target_text == "一"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{wav: ., offset: 0, duration: 1}", "is not a file"),
        ("{wav: .., offset: 0, duration: 1}", "is not a file"),
        ('{wav: "a\\0b.wav", offset: 0, duration: 1}', "a\\x00b.wav is not a file"),
        ('{wav: "x\\e[31m.wav", offset: 0, duration: 1}', "x\\x1b[31m.wav is not a file"),
        ("{wav: [talk_a.wav], offset: 0, duration: 1}", "lacks wav"),
        ("{wav: talk_a.wav, offset: {a: 1}, duration: 1}", "lacks offset"),
        ("{wav: talk_a.wav, offset: 1e308, duration: 1}", "longer than any recording"),
        ("{wav: talk_a.wav, offset: 0, duration: 1e400}", "finite"),
    ],
)
def test_odd_rows_are_listed(tst: Path, row: str, problem: str) -> None:
    (tst / "tst.yaml").write_text(f"- {row}\n")
    tsv(tst / "tst.de", ["Eins."])
    tsv(tst / "tst.en", ["One."])
    (told,) = iwslt.load(tst, "en", "de").problems
    assert problem in told.problem


def test_aliases_that_explode_are_not_written_out(tst: Path) -> None:
    bomb = "&a0 [lol]"
    for i in range(1, 10):
        bomb = f"&a{i} [{bomb}, {', '.join([f'*a{i - 1}'] * 9)}]"
    (tst / "tst.yaml").write_text(f"- {{wav: {bomb}, offset: *a9, duration: *a9}}\n- *a9\n")
    tsv(tst / "tst.de", ["Eins.", "Zwei."])
    tsv(tst / "tst.en", ["One.", "Two."])
    assert len(iwslt.load(tst, "en", "de").problems) == 2


def test_a_list_that_cannot_be_read(tst: Path) -> None:
    for file in (tst / "none.yaml", tst):
        with pytest.raises(DataError):
            list(segments.entries(file))
    (tst / "tst.yaml").write_text("- " + "[" * 3000 + "]" * 3000)
    with pytest.raises(DataError, match=r"tst\.yaml:1"):
        list(segments.entries(tst / "tst.yaml"))
    (tst / "tst.yaml").write_text("- " + "[" * 900 + "]" * 900)
    with pytest.raises(DataError, match=r"tst\.yaml:1: nested too deeply"):
        list(segments.entries(tst / "tst.yaml"))
