"""Clips and manifests: what is written is what is read, and each bad line is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.data import manifest
from sordino.data.clip import FIELDS, Clip
from sordino.errors import DataError

from .sounds import clip

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAME = TEXT.filter(str.strip)
SECONDS = st.floats(0, 1e6, allow_nan=False)
CLIPS = st.builds(
    Clip,
    id=NAME,
    audio=TEXT.map("/{}".format),
    seconds=st.none() | SECONDS.filter(bool),
    source_lang=NAME,
    target_lang=NAME,
    source_text=st.none() | TEXT,
    target_text=st.none() | TEXT,
    start=SECONDS,
    group=st.none() | TEXT,
    origin=st.just("authentic") | NAME.map("teacher:{}".format),
)
LINE: dict[str, Any] = {"id": "a", "audio": "/a.wav", "source_lang": "en", "target_lang": "de"}


@settings(max_examples=60, deadline=None)
@given(clips=st.lists(CLIPS, min_size=1, max_size=5, unique_by=lambda one: one.id))
def test_round_trip(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    manifest.write(folder / "a.jsonl", clips)
    assert manifest.read(folder / "a.jsonl") == clips
    manifest.write(folder / "b.jsonl", manifest.stream(folder / "a.jsonl"))
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_the_format(tmp_path: Path) -> None:
    manifest.write(tmp_path / "new" / "a.jsonl", [clip("ä", "/a.wav", seconds=1.5, group="talk")])
    assert (tmp_path / "new" / "a.jsonl").read_text(encoding="utf-8") == (
        '{"id": "ä", "audio": "/a.wav", "seconds": 1.5, "source_lang": "en", "target_lang": "de", '
        '"target_text": "Hallo.", "start": 0.0, "group": "talk", "origin": "authentic"}\n'
    )


def test_a_failed_write_leaves_the_old_manifest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    manifest.write(path, [clip("a")])
    before = path.read_bytes()
    for clips in ([clip("b"), clip("b")], []):
        with pytest.raises(DataError, match=r"a\.jsonl"):
            manifest.write(path, clips)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_the_old_manifest_keeps_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    manifest.write(path, [clip("old")])
    with path.open() as reader:
        manifest.write(path, [clip("new")])
        assert '"old"' in reader.read()
    assert manifest.read(path)[0].id == "new"


def test_stream_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(LINE) + "\n{cut")
    stream = manifest.stream(path)
    assert next(stream).id == "a"
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        next(stream)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"id": "b", ', "not JSON"),
        (b'{"id": ' + b"1" * 5000 + b"}", "thousands of digits"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b"[1]", "JSON object, found list"),
        (b'{"id": "b"}', "missing field 'audio', 'source_lang', 'target_lang'"),
        (json.dumps(LINE).encode(), "id 'a' stands on line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(DataError) as caught:
        manifest.read(path)
    assert f"{path}:3: " in caught.value.problem
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"target_txt": "Hallo"}, "unknown field 'target_txt'"),
        ({"id": None}, "missing field 'id'"),
        ({"id": " "}, "'id' must not be empty"),
        ({"id": 7}, "'id' must be a string, found int"),
        ({"audio": "a.wav"}, "absolute path"),
        ({"target_text": ["Hallo"]}, "'target_text' must be a string, found list"),
        ({"target_text": "\ud800"}, "surrogate"),
        ({"seconds": "3"}, "'seconds' must be a number of seconds, found str"),
        ({"seconds": True}, "found bool"),
        ({"seconds": 0}, "above 0"),
        ({"seconds": float("nan")}, "finite"),
        ({"seconds": 10**400}, "finite"),
        ({"start": -0.5}, "negative"),
        ({"group": 3}, "'group' must be a string"),
        ({"origin": "teacher:"}, "'origin' must be"),
        ({"origin": "human"}, "'origin' must be"),
    ],
)
def test_a_bad_field_is_named(change: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        Clip.from_json(LINE | change)
    assert problem in caught.value.problem


def test_absent_fields_and_explicit_nulls_are_the_same() -> None:
    assert Clip.from_json(LINE) == Clip.from_json(dict.fromkeys(FIELDS) | LINE)
    assert Clip.from_json(LINE).to_json() == LINE | {"start": 0.0, "origin": "authentic"}


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a file"):
        manifest.read(tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="holds no clips"):
        manifest.read(tmp_path / "a.jsonl")
