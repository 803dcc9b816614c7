"""Leaks between splits that no group shows are told: recordings, sounds, sentences."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sordino.data.clip import Clip
from sordino.data.leaks import notes

from .sounds import clip, save, tone


@pytest.fixture
def dealt(tmp_path: Path) -> dict[str, list[Clip]]:
    files = [save(tmp_path / f"{i}.wav", tone(1.0 + i / 10)) for i in range(4)]
    made = [clip(f"c{i}", file, target_text=f"Satz {i}.", seconds=1.0 + i / 10) for i, file in enumerate(files)]
    return {"train": made[:2], "dev": [made[2]], "test": [made[3]]}


def test_splits_that_share_nothing_are_quiet(dealt: dict[str, list[Clip]]) -> None:
    assert notes(dealt) == []


def test_a_recording_in_two_splits(dealt: dict[str, list[Clip]]) -> None:
    audio = dealt["train"][0].audio
    dealt["test"].append(clip("slice", audio, start=0.5, seconds=0.5, target_text="Rest."))
    assert notes(dealt) == ["recordings in several splits: 1 (0.wav in train and test); scores on them measure memory"]


def test_a_copy_of_a_sound(dealt: dict[str, list[Clip]], tmp_path: Path) -> None:
    one = dealt["train"][1]
    shutil.copy(one.audio, tmp_path / "copy.wav")
    dealt["test"].append(clip("copy", tmp_path / "copy.wav", seconds=one.seconds, target_text="Anders."))
    (note,) = notes(dealt)
    assert "sounds in several splits: 1 (c1 in train and test)" in note


def test_a_sentence_twice(dealt: dict[str, list[Clip]], tmp_path: Path) -> None:
    other = save(tmp_path / "other.wav", tone(2.0))
    dealt["extra"] = [clip("again", other, target_text="Satz 3.", seconds=2.0)]
    (note,) = notes(dealt)
    assert "sentences in several splits: 1 (Satz 3. in test and train)" in note
    dealt["dev"].append(clip("x", other, target_text="Satz \x1b[2J" * 20, seconds=2.0))
    dealt["train"].append(clip("y", other, target_text="Satz \x1b[2J" * 20, seconds=2.0))
    assert all(line.isprintable() for line in notes(dealt))
