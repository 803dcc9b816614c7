"""Bars that somebody else draws: every step is told, nothing is printed."""

from __future__ import annotations

import pytest

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
