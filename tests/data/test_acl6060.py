"""ACL 60/60: the release and the Hub's copy give the same clips, and wrong copies are told from right ones."""

import sys
from pathlib import Path

import pytest

from sordino.data import corpora, splits
from sordino.data.audio import load_clip
from sordino.data.checks import check_audio
from sordino.data.corpora import acl6060
from sordino.data.corpora.acl6060 import SIZES, TALKS, load, paper_test, talk_of
from sordino.errors import DataError

from .layouts import acl_release, acl_rows, acl_shard, seconds

FEW = {"dev": {"2022.acl-long.268": 3, "2022.acl-long.367": 2}, "eval": {"2022.acl-long.410": 2}}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return acl_release(tmp_path / "acl", FEW)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    acl_shard(folder / "data" / "dev-00000-of-00002.parquet", acl_rows(tmp_path, [1, 2, 3]))
    acl_shard(folder / "data" / "dev-00001-of-00002.parquet", acl_rows(tmp_path, [108, 109]))
    acl_shard(folder / "data" / "eval-00000-of-00001.parquet", acl_rows(tmp_path, [1, 2]))
    return folder


def test_the_release(release: Path) -> None:
    corpus = load(release, "en", "de")
    assert [one.id for one in corpus.clips] == [f"dev/sent_{n}" for n in range(1, 6)] + ["eval/sent_1", "eval/sent_2"]
    assert [one.group for one in corpus.clips] == [
        *["2022.acl-long.268"] * 3, *["2022.acl-long.367"] * 2, *["2022.acl-long.410"] * 2
    ]  # fmt: skip
    first = corpus.clips[0]
    assert (first.source_text, first.target_text) == ("Sentence 1 & more.", "Satz 1 & more.")
    assert corpus.problems == ()
    assert corpus.splits == {}
    good, bad = check_audio(corpus.clips)
    assert bad == []
    assert [one.seconds for one in good] == [seconds(n) for n in (1, 2, 3, 4, 5, 1, 2)]
    for inner in ("2", "2/acl_6060"):
        assert load(release / inner, "English", "German").clips[0].audio == first.audio
    assert len(load(release, "en", "de", subsets=("eval",)).clips) == 2


def test_the_hub_s_copy(hub: Path, tmp_path: Path) -> None:
    corpus = load(hub, "en", "zh", audio_dir=tmp_path / "run" / "audio")
    assert [one.id for one in corpus.clips] == [
        "dev/sent_1", "dev/sent_2", "dev/sent_3", "dev/sent_108", "dev/sent_109", "eval/sent_1", "eval/sent_2"
    ]  # fmt: skip
    assert [one.group for one in corpus.clips][2:6] == [
        "2022.acl-long.268", "2022.acl-long.367", "2022.acl-long.367", "2022.acl-long.410"
    ]  # fmt: skip
    assert corpus.clips[3].target_text == "句子 108 & more."
    assert corpus.problems == ()
    assert {Path(one.audio).parent for one in corpus.clips} == {tmp_path / "run" / "audio"}
    assert not list(hub.rglob("*.wav"))
    good, bad = check_audio(corpus.clips)
    assert bad == []
    assert [one.seconds for one in good] == [seconds(n) for n in (1, 2, 3, 108, 109, 1, 2)]


def test_texts_alone_unpack_nothing(hub: Path, tmp_path: Path) -> None:
    """As the ranking asks for references in further languages."""
    corpus = load(hub, "en", "zh")
    encoded = load(hub, "en", "zh", audio_dir=tmp_path / "audio")
    assert [(one.id, one.target_text) for one in corpus.clips] == [(one.id, one.target_text) for one in encoded.clips]
    assert {Path(one.audio).suffix for one in corpus.clips} == {".parquet"}


def test_both_forms_give_the_same_clips(release: Path, tmp_path: Path) -> None:
    shard = acl_shard(tmp_path / "hub" / "eval" / "0000.parquet", acl_rows(tmp_path, [1, 2]))
    ours = load(release, "en", "de", subsets=("eval",)).clips
    theirs = load(shard.parent.parent, "en", "de", audio_dir=tmp_path / "audio").clips
    for one, other in zip(ours, theirs, strict=True):
        assert one.to_json() | {"audio": ""} == other.to_json() | {"audio": ""}
        assert (load_clip(one) == load_clip(other)).all()


def test_complete_subsets_need_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{key: value for key, value in row.items() if key != "index"} for row in acl_rows(tmp_path, range(1, 6))]
    acl_shard(tmp_path / "hub" / "dev.parquet", rows)
    corpus = load(tmp_path / "hub", "en", "de", audio_dir=tmp_path / "audio")
    assert corpus.clips == ()
    assert "not complete and has no column 'index'" in corpus.problems[0].problem
    monkeypatch.setattr(acl6060, "SIZES", {"dev": 5})
    assert len(load(tmp_path / "hub", "en", "de", audio_dir=tmp_path / "audio").clips) == 5


def test_unpacking_again_writes_nothing(hub: Path, tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    load(hub, "en", "de", audio_dir=audio)
    (audio / "dev-sent_2.wav").write_bytes(b"RIFF, cut by a kill")
    before = {file.name: file.stat().st_mtime_ns for file in audio.iterdir()}
    load(hub, "en", "de", audio_dir=audio)
    after = {file.name: file.stat().st_mtime_ns for file in audio.iterdir()}
    assert {name for name in after if before[name] != after[name]} == {"dev-sent_2.wav"}
    assert (audio / "dev-sent_2.wav").read_bytes() == acl_rows(tmp_path, [2])[0]["audio"]["bytes"]


def test_the_talks_add_up_and_the_splits_keep_them_apart(tmp_path: Path) -> None:
    assert SIZES == {"dev": 468, "eval": 416}
    assert sum(map(len, TALKS.values())) == 10
    assert (talk_of("dev", 107), talk_of("dev", 108)) == ("2022.acl-long.268", "2022.acl-long.367")
    assert (talk_of("eval", 416), talk_of("eval", 1)) == ("2022.acl-long.111", "2022.acl-long.410")
    for number in (0, 417):
        with pytest.raises(DataError, match="eval has 416 segments"):
            talk_of("eval", number)


def test_the_paper_s_split() -> None:
    """`train_test_split` of datasets draws `np.random.default_rng(0).permutation(884)` and tests on the first 100."""
    test = paper_test()
    assert len(test) == 100
    rows = [764, 290, 94, 519, 297, 748]  # how that permutation begins (NumPy 2.3); dev is rows 0 to 467
    assert test >= {f"dev/sent_{row + 1}" if row < 468 else f"eval/sent_{row - 467}" for row in rows}


def test_the_paper_s_split_leaks_and_says_so(tmp_path: Path) -> None:
    acl_shard(tmp_path / "hub" / "dev-00000-of-00001.parquet", acl_rows(tmp_path, [94, 95, 96, 97]))
    corpus = load(tmp_path / "hub", "en", "de", split="paper", audio_dir=tmp_path / "audio")
    assert corpus.splits == {
        "dev/sent_94": "train", "dev/sent_95": "test", "dev/sent_96": "train", "dev/sent_97": "train"
    }  # fmt: skip
    with pytest.raises(DataError, match=r"'2022\.acl-long\.268' stands in train .* and in test"):
        splits.assign(corpus.clips, {}, 0, corpus.splits)
    dealt = splits.assign(corpus.clips, {"test": 1, "select": 1}, 0, corpus.splits, split_by="segment")
    assert [one.id for one in dealt["test"]] == ["dev/sent_95"]
    assert len(dealt["select"]) == 1


def test_rows_that_cannot_be_used(release: Path, tmp_path: Path) -> None:
    root = release / "2/acl_6060/dev"
    (root / "segmented_wavs/gold/sent_2.wav").unlink()
    german = root / "text/xml/ACL.6060.dev.en-xx.de.xml"
    text = german.read_text(encoding="utf-8").replace("Satz 3 &amp; more.", "").replace('<seg id="4">', '<seg id="99">')
    german.write_text(text, encoding="utf-8")
    corpus = load(release, "en", "de")
    assert [one.id for one in corpus.clips] == ["dev/sent_1", "dev/sent_5", "eval/sent_1", "eval/sent_2"]
    assert [row.id for row in corpus.problems] == ["dev/sent_2", "dev/sent_3", "dev/sent_4"]
    assert "sent_2.wav is not a file" in corpus.problems[0].problem
    assert "target text is empty" in corpus.problems[1].problem
    rows = acl_rows(tmp_path, [1, 2, 3, 500])
    rows[0]["audio"]["bytes"] = None
    rows[1]["text_de"] = None
    acl_shard(tmp_path / "hub" / "dev-00000-of-00001.parquet", rows)
    embedded = load(tmp_path / "hub", "en", "de", audio_dir=tmp_path / "audio")
    assert [one.id for one in embedded.clips] == ["dev/sent_3"]
    told = [row.problem for row in embedded.problems]
    assert "dev-00000-of-00001.parquet row 1: the row holds no audio bytes" in told[0]
    assert "target text is empty" in told[1]
    assert "dev has 468 segments" in told[2]


def test_wrong_copies_are_shown_the_right_layout(release: Path, hub: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "wav").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "other", "en", "de")
    assert "Found there: wav/" in caught.value.remedy
    assert "2/acl_6060/{dev,eval}/segmented_wavs/gold/sent_1.wav" in caught.value.remedy
    with pytest.raises(DataError, match="no such directory"):
        load(tmp_path / "none", "en", "de")
    with pytest.raises(DataError, match=r"no ACL\.6060\.dev\.en-xx\.fr\.xml.*Languages found: de, en\."):
        load(release, "en", "fr")
    with pytest.raises(DataError, match=r"lacks the column 'text_ru'.*Found: index, audio, text_en"):
        load(hub, "en", "ru", audio_dir=tmp_path / "audio")
    with pytest.raises(DataError, match="spoken in English"):
        load(release, "de", "en")
    with pytest.raises(DataError, match=r"no part 'test' of ACL 60/60.*Found: dev, eval"):
        load(release, "en", "de", subsets=("test",))
    with pytest.raises(DataError, match="texts"):
        load(hub, "en", "de", "a.tsv")
    (hub / "data" / "eval-00000-of-00001.parquet").write_bytes(b"PAR1, cut")
    with pytest.raises(DataError, match=r"eval-00000-of-00001\.parquet cannot be read as parquet"):
        load(hub, "en", "de", audio_dir=tmp_path / "audio")
    release = release / "2/acl_6060"
    for part, missing in (("segmented_wavs", "segmented_wavs/gold is missing"), ("text/xml", "text/xml is missing")):
        (release / "dev" / part).rename(release / "elsewhere")
        with pytest.raises(DataError, match=missing):
            load(release, "en", "de")
        (release / "elsewhere").rename(release / "dev" / part)
    file = release / "dev/text/xml/ACL.6060.dev.en-xx.de.xml"
    file.write_text("<mteval></mteval>")
    with pytest.raises(DataError, match="<seg id="):
        load(release, "en", "de")
    file.write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load(release, "en", "de")


def test_without_pyarrow_the_extra_is_named(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install '.\[hub\]'"):
        corpora.load("acl6060", hub, "en", "de", audio_dir=tmp_path / "audio")
