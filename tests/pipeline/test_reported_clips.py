"""Sounds on the page: small, the same bytes each time, as many as there is room for, and why one is missing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sordino.data.clip import Clip
from sordino.pipeline import reported_clips
from sordino.report.model import Sample
from tests.data import sounds
from tests.tiny import clip


def clips_in(directory: Path, count: int) -> list[Clip]:
    for i in range(count):
        sounds.save(directory / f"{i}.flac", clip(i, 2.0))
    return [Clip(f"c{i}", str(directory / f"{i}.flac"), 1.5, "en", "de", "a", "b", start=0.25) for i in range(count)]


def samples_of(clips: list[Clip]) -> list[Sample]:
    return [Sample(c.id, "a", "b", {}) for c in clips]


def test_a_sample_plays_its_stretch(tmp_path: Path) -> None:
    clips = clips_in(tmp_path, 1)
    (sample,) = reported_clips.with_sound(samples_of(clips), clips)
    waveform, rate = soundfile.read(io.BytesIO(sample.audio))
    assert rate == 16_000 and abs(len(waveform) / rate - 1.5) < 0.15  # MP3 pads to whole frames
    assert float(np.abs(waveform).max()) > 0.01
    assert len(sample.audio) < 8_000 and sample.silent == ""
    assert reported_clips.mp3(clips[0]) == sample.audio


def test_the_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = clips_in(tmp_path, 3)
    size = len(reported_clips.mp3(clips[0]))
    monkeypatch.setattr(reported_clips, "AUDIO_BYTES", 2 * size + size // 2)
    heard = reported_clips.with_sound(samples_of(clips), clips)
    assert [bool(sample.audio) for sample in heard] == [True, True, False]
    assert heard[2].silent == "Its audio would make this page too large."


def test_audio_that_is_gone_is_said(tmp_path: Path) -> None:
    clips = clips_in(tmp_path, 2)
    Path(clips[0].audio).unlink()
    gone, there = reported_clips.with_sound(samples_of(clips), clips)
    assert gone.audio == b"" and "does not exist" in gone.silent
    assert there.audio
