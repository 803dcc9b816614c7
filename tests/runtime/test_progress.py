"""Bars that somebody else draws: every step is told, nothing is printed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sordino.runtime import progress
from sordino.runtime.progress import bar, byte_bar, note, reported_to

Capsys = pytest.CaptureFixture[str]


def test_a_listener_is_told_every_step(capsys: Capsys) -> None:
    events: list[tuple[str, int, int]] = []
    with reported_to(lambda *event: events.append(event)):
        with bar("counting", 5, done=2) as advance:
            advance(1)
            advance(2)
        with byte_bar("copying", 8) as advance:
            advance(8)
        note("a line for people")
    assert events == [
        ("counting", 2, 5), ("counting", 3, 5), ("counting", 5, 5), ("copying", 0, 8), ("copying", 8, 8),
    ]  # fmt: skip
    assert capsys.readouterr() == ("", "")


def test_nobody_to_tell_is_silence_inside_the_block_alone(capsys: Capsys) -> None:
    with reported_to(None), bar("counting", 1) as advance:
        advance(1)
        note("unheard")
    assert capsys.readouterr() == ("", "")
    note("heard")
    assert "heard" in capsys.readouterr().err


def test_the_block_inside_is_the_one_that_is_told() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with reported_to(lambda label, *_: outer.append(label)):
        with reported_to(lambda label, *_: inner.append(label)), bar("one", 1):
            pass
        with bar("two", 1):
            pass
    assert (outer, inner) == (["two"], ["one"])


def test_a_long_bar_says_in_a_log_how_far_it_is(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line a minute and its time left: a batch system's log shows nothing else until the bar is full."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with bar("ranking", 10, done=2) as advance:
        for _ in range(8):
            now[0] += 25.0
            advance(1)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[:2] == ["ranking: 50%, 0:02:05 left", "ranking: 80%, 0:00:50 left"]
    assert [line.split()[0] for line in lines] == ["ranking:", "ranking:", "ranking"]  # the full bar
