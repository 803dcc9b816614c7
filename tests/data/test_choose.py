"""Which clips are taken: limits by header and by text, and a sample that does not open more files than it must."""

from pathlib import Path

import pytest
import soundfile

from sordino.data.choose import choose
from sordino.data.clip import Clip

from .sounds import clip, save, tone


def ids(clips: list[Clip]) -> list[str]:
    return [one.id for one in clips]


def test_a_sample_is_seeded_and_in_order() -> None:
    clips = [clip(f"{i:03d}") for i in range(50)]
    assert choose(clips, None, 0) == choose(clips, 50, 0) == choose(clips, 100_000, 0) == clips
    taken = ids(choose(clips, 10, 0))
    assert taken == sorted(taken)
    assert len(set(taken)) == 10
    assert taken == ids(choose(clips, 10, 0))
    assert taken != ids(choose(clips, 10, 1))


def test_lengths_come_from_the_table_or_the_header(tmp_path: Path) -> None:
    long, short = save(tmp_path / "long.mp3", tone(3.0)), save(tmp_path / "short.wav", tone(0.5))
    (tmp_path / "broken.wav").write_text("no audio")
    clips = [
        clip("long", long),
        clip("short", short),
        clip("slice", long, start=1.0, seconds=0.9),
        clip("rest", long, start=2.0),
        clip("broken", tmp_path / "broken.wav"),
        clip("gone", tmp_path / "gone.wav"),
    ]
    assert ids(choose(clips, None, 0, max_seconds=2.0)) == ["short", "slice", "rest", "broken", "gone"]
    assert ids(choose(clips, None, 0, min_seconds=0.95)) == ["long", "rest", "broken", "gone"]
    assert ids(choose(clips[:4], None, 0, min_seconds=0.6, max_seconds=2.0)) == ["slice", "rest"]


def test_only_as_many_headers_are_read_as_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(1.0))
    opened: list[str] = []
    info = soundfile.info
    monkeypatch.setattr(soundfile, "info", lambda name: opened.append(name) or info(path))
    clips = [clip(f"{i:03d}", path) for i in range(200)]
    taken = choose(clips, 20, 0, max_seconds=2.0)
    assert len(taken) == len(opened) == 20
    assert ids(taken) == sorted(ids(taken))
    assert ids(choose(clips, 20, 0, max_seconds=0.5)) == []


def test_translations_of_unusual_length_are_left_out() -> None:
    """Usual here is half as many characters as in the transcript, as in Chinese."""
    texts = [("x" * 20, "y" * length) for length in (10, 9, 11, 10, 4, 25, 2, 60)]
    clips = [clip(f"{i}", source_text=source, target_text=target) for i, (source, target) in enumerate(texts)]
    clips.append(clip("unknown", target_text="y" * 500))
    assert ids(choose(clips, None, 0, max_ratio=2.0)) == ["0", "1", "2", "3", "unknown"]
    assert ids(choose(clips, None, 0, max_ratio=2.6)) == ["0", "1", "2", "3", "4", "5", "unknown"]
    assert choose(clips[-1:], None, 0, max_ratio=1.0) == clips[-1:]
    assert len(choose(clips, 3, 0, max_ratio=2.0)) == 3
