"""The audio check: true lengths, and every bad clip listed."""

from pathlib import Path

import numpy as np

from sordino.data.checks import check_audio

from .sounds import clip, keep, save, tone


def test_every_clip_is_checked_and_gets_its_true_length(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.wav", tone(1.5, 44_100), 44_100)
    cut = keep(save(tmp_path / "cut.flac", tone(3.0)), 0.5)
    silent = save(tmp_path / "silent.wav", np.zeros(8_000, np.float32))
    clips = [
        clip("gone", tmp_path / "gone.wav"),
        clip("whole", whole),
        clip("cut", cut),
        clip("slice", whole, start=0.5, seconds=0.25),
        clip("silent", silent),
        clip("rounded", whole, start=1.0, seconds=0.505),
    ]
    seen: list[int] = []
    good, bad = check_audio(clips, seen.append)
    assert {one.id: one.seconds for one in good} == {"whole": 1.5, "slice": 0.25, "rounded": 0.5}
    assert [one.id for one in bad] == ["gone", "cut", "silent"]
    assert all(one.audio in one.problem and one.remedy for one in bad)
    assert seen == [1, 2, 3, 4, 5, 6]
    again, none = check_audio(good)
    assert again == good
    assert none == []
