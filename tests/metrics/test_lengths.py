"""Ranges of clip lengths: quarters, with clips of one length together, or none."""

from __future__ import annotations

import pytest

from sordino.metrics.lengths import deal


def test_a_quarter_of_the_clips_each() -> None:
    seconds = [float(i) for i in range(40, 0, -1)]
    ranges = deal(seconds)
    assert list(ranges) == ["under 11.0 s", "11.0 to 21.0 s", "21.0 to 31.0 s", "31.0 s and more"]
    assert [len(clips) for clips in ranges.values()] == [10] * 4
    assert {seconds[i] for i in ranges["under 11.0 s"]} == {float(i) for i in range(1, 11)}
    assert sorted(i for clips in ranges.values() for i in clips) == list(range(40))


def test_clips_of_one_length_stay_together() -> None:
    ranges = deal([2.0] * 15 + [5.0] * 15)
    assert {name: len(clips) for name, clips in ranges.items()} == {}  # nothing is under the first edge
    ranges = deal([1.0] * 6 + [2.0] * 14 + [5.0] * 10)
    assert {name: len(clips) for name, clips in ranges.items()} == {
        "under 2.0 s": 6, "2.0 to 5.0 s": 14, "5.0 s and more": 10,
    }  # fmt: skip


@pytest.mark.parametrize("seconds", [[], [1.0, 2.0] * 9, [3.0] * 50, [*map(float, range(39)), None]])
def test_none_where_they_would_say_little(seconds: list[float | None]) -> None:
    assert deal(seconds) == {}
