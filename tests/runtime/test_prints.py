"""A replaced recording shows, and one that is as it was is not read again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sordino.runtime import prints
from sordino.runtime.prints import SampledPrints, fingerprint_sampled


@pytest.mark.parametrize("size", [0, 10, 2**16, 2**16 + 1, 2**17, 300_000])
def test_a_replaced_recording_of_the_same_size_shows(tmp_path: Path, size: int) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(bytes(size))
    first = fingerprint_sampled(file)
    assert fingerprint_sampled(file) == first
    prints = {first}
    for at in {0, size - 1} if size else ():
        data = bytearray(size)
        data[at] = 1
        file.write_bytes(data)
        prints.add(fingerprint_sampled(file))
    file.write_bytes(bytes(size + 1))
    prints.add(fingerprint_sampled(file))
    assert len(prints) == 1 + len({0, size - 1} if size else ()) + 1


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []

    def spy(file: Path, sample: int = 2**16) -> str:
        names.append(file.name)
        return fingerprint_sampled(file, sample)

    monkeypatch.setattr(prints, "fingerprint_sampled", spy)
    return names


def test_files_that_are_as_they_were_are_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    recordings = [tmp_path / name for name in ("a.wav", "b.wav")]
    for file in recordings:
        file.write_bytes(file.name.encode())

    def look() -> list[str]:
        ends = SampledPrints(run / "cache" / "audio.json")
        found = [ends.of(file, file.name) for file in recordings]
        ends.save()
        return found

    first = look()
    assert look() == first
    assert reads == ["a.wav", "b.wav"]
    recordings[0].write_bytes(b"c.wav")  # of the same size
    os.utime(recordings[0], ns=(1, 1))
    assert look()[0] != first[0]
    assert look()[1] == first[1]
    assert reads == ["a.wav", "b.wav", "a.wav"]
    for text in ("{cut", "[]", '{"x": 5}', "null"):
        (run / "cache" / "audio.json").write_text(text)
        assert look()[1] == first[1]


def test_a_copy_has_the_same_print(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    shutil.copy(tmp_path / "a.wav", tmp_path / "b.wav")
    ends = SampledPrints(tmp_path / "cache" / "audio.json")
    assert ends.of(tmp_path / "a.wav", "a.wav") == ends.of(tmp_path / "b.wav", "b.wav")
