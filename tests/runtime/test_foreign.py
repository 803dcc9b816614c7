"""Files and values of others: read whatever is sound, refused in one sentence with file and line whatever is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sordino.errors import ArtifactError, DataError, SordinoError
from sordino.runtime import foreign
from sordino.runtime.values import Malformed, parse_json, parse_yaml


def laughs(levels: int) -> str:
    """A document of ten to the `levels` values, in a few hundred bytes."""
    rows = ["a0: &a0 lol"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels + 1)]
    return "\n".join(rows) + "\n"


def merging(levels: int) -> str:
    """The same with merge keys, which PyYAML writes out before anything is made of them."""
    rows = ["a0: &a0 {x: 1}"]
    rows += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, levels + 1)]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: 1, b: [x, 2.5, null, true]}", {"a": 1, "b": ["x", 2.5, None, True]}),
        ("", None),
        ("base: &b {x: 1}\nmore: {<<: *b, y: 2}", {"base": {"x": 1}, "more": {"x": 1, "y": 2}}),
    ],
)
def test_sound_yaml(text: str, value: Any) -> None:
    assert parse_yaml(text) == value


def test_a_few_aliases_are_fine() -> None:
    assert parse_yaml(laughs(3))["a3"][9][9][9] == "lol"
    assert parse_yaml(merging(3))["a3"] == {"x": 1}


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("a: [1, 2", "not YAML", 1),
        ("a: 1\nb: \x07", "not YAML", None),
        (laughs(9), "aliases stand for over", None),
        (merging(9), "aliases stand for over", None),
        ("a: &a [*a]", "inside of what it names", 1),
        ("[" * 3000 + "]" * 3000, "nested too deeply", None),
        ("[" * 150 + "]" * 150, "nested too deeply", 1),
        ("seed: 2024-99-99", "not of the type that it looks like", None),
        ("!!int abc", "not of the type", None),
        ("!!float abc", "not of the type", None),
        ("!!bool abc", "not of the type", None),
        ("!!timestamp abc", "not of the type", None),
        ("0x_", "not of the type", None),
        ("0b_", "not of the type", None),
        ("1" * 5000, "not of the type", None),
        ("- [a, b]\n" * 100_000, "900,000 characters are more than", None),
        ("1" * 400, "hundreds of digits", None),
        ("seed: 1\nlr: 2\nseed: 3", "the key 'seed' stands there twice", 3),
        ("!!python/object/apply:os.system [true]", "not YAML", 1),
        ('"\\ud800"', "surrogate", None),
    ],
)
def test_yaml_that_nothing_could_work_with(text: str, problem: str, line: int | None) -> None:
    with pytest.raises(Malformed, match=problem) as caught:
        parse_yaml(text)
    assert line is None or caught.value.line == line
    assert len(caught.value.problem) < 300


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{cut", "not JSON: expecting property name"),
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
        ("[" * 150 + "]" * 150, "nested too deeply"),
        ("1" * 5000, "thousands of digits"),
        ("1" * 400, "hundreds of digits"),
        ("1e999", "beyond every number"),
        ("-1e999", "beyond every number"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"\\udfff": 1}', "half of a surrogate pair"),
        ("", "not JSON"),
    ],
)
def test_json_that_nothing_could_work_with(text: str, problem: str) -> None:
    with pytest.raises(Malformed, match=problem):
        parse_json(text)


def test_sound_json() -> None:
    assert parse_json('{"a": [1, 2.5, "\\ud83d\\ude00", null], "most": 1000000000000000019884624838656}') == {
        "a": [1, 2.5, "😀", None],
        "most": 1000000000000000019884624838656,
    }
    assert parse_json("[NaN]", finite=False)[0] != 0  # files of our own, which Python's json wrote


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"[]", "must hold a JSON object, and holds a list."),
        (b"null", "holds null."),
        (b"5", "holds a number."),
        (b'"x"', "holds text."),
        (b"{}", "lacks 'model_type'."),
        (b'{"model_type": 7}', "'model_type' cannot be 7."),
        (b'{"model_type": ["x"]}', "'model_type' cannot be ['x']."),
        (b'{\n\n"a": }', ":3: not JSON"),
        (b'{"a": "\xff"}', ":1: byte 0xff, which is not UTF-8"),
        (b'{"a":\n"\0"}', ":2: NUL"),
        ('{"a": 1}'.encode("utf-16"), "is UTF-16."),
        (b"", "not JSON"),
    ],
)
def test_json_files_that_are_no_object_of_their_kind(tmp_path: Path, raw: bytes, problem: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(raw)
    with pytest.raises(ArtifactError) as caught:
        foreign.read_json(file, raises=ArtifactError, required={"model_type": str})
    assert str(file) in caught.value.problem
    assert problem in caught.value.problem
    assert caught.value.remedy


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"x": "ä"}', encoding="utf-8-sig")
    assert foreign.read_json(tmp_path / "a") == {"x": "ä"}
    assert foreign.read_yaml(tmp_path / "a") == {"x": "ä"}
    assert list(foreign.read_jsonl(tmp_path / "a")) == [(1, {"x": "ä"})]
    assert list(foreign.lines(tmp_path / "a")) == ['{"x": "ä"}']


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "none": "there is no file",
        "": "is a directory",
        "loop": "leads back to itself",
        "pipe": "no regular file",  # reading it would wait for ever
        "file/x": "a file is where a directory must be",
        "x" * 300: "name is too long",
        "a\0b": "embedded null",
        "\udce9.json": "there is no file",
    }
    for name, problem in cases.items():
        for read in (foreign.read_text, foreign.read_json, foreign.read_yaml, lambda file: list(foreign.lines(file))):
            with pytest.raises(DataError) as caught:
                read(tmp_path / name)
            assert problem in caught.value.problem
            str(caught.value).encode("utf-8")
            assert "\0" not in str(caught.value)


def test_a_file_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "a"))

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(SordinoError, match="a: permission denied"):
        foreign.read_text(tmp_path / "a")


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("eins\u2028zwei\r\n\nvier\x85\x0c".encode())
    assert list(foreign.lines(tmp_path / "a")) == ["eins\u2028zwei\r", "", "vier\x85\x0c"]
    (tmp_path / "a").write_bytes(b"one\ntwo\n\xe4hm\n")
    with pytest.raises(DataError, match=r"a:3: byte 0xe4, which is not UTF-8 \(byte 1 of the line\)"):
        list(foreign.lines(tmp_path / "a"))
    with pytest.raises(DataError, match=r"a:3: byte 0xe4"):
        foreign.read_text(tmp_path / "a")


def test_json_lines_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"id": "x"}\n\n{"id": null}\n')
    rows = foreign.read_jsonl(tmp_path / "a", required={"id": str})
    assert next(rows) == (1, {"id": "x"})
    with pytest.raises(DataError, match=r"a:3: 'id' cannot be None"):
        next(rows)


def test_a_shell_s_pipe_is_read() -> None:
    code = "from pathlib import Path; from sordino.runtime import foreign; print(foreign.read_text(Path('/dev/stdin')))"
    done = subprocess.run([sys.executable, "-c", code], input="Grüße", capture_output=True, text=True, check=True)
    assert done.stdout == "Grüße\n"
