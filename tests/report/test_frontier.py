"""The frontier and its knee, by definition and on curves whose corner is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sordino.report.frontier import Point, frontier, knee, smallest_good

points = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=8)


def beaten(point: Point, others: list[Point]) -> bool:
    return any(o != point and o[0] <= point[0] and o[1] >= point[1] for o in others)


@given(points)
def test_the_frontier_is_what_nothing_beats(found: list[Point]) -> None:
    line = frontier(found)
    assert {found[i] for i in line} == {p for p in found if not beaten(p, found)}
    assert [found[i] for i in line] == sorted({found[i] for i in line})
    assert (knee(found) is None) == (not found)
    assert not found or knee(found) in line


def test_the_knee_is_the_corner() -> None:
    curve = [(100, 90.0), (40, 89.0), (20, 87.0), (10, 60.0), (5, 20.0), (30, 50.0)]
    assert frontier(curve) == [4, 3, 2, 1, 0]
    assert knee(curve) == 2


def test_short_frontiers() -> None:
    assert knee([(3, 1.0), (1, 2.0)]) == 1  # the smallest is the best
    assert knee([(3, 2.0), (1, 1.0)]) == 0  # nothing between: the better one
    assert knee([(3, 3.0), (2, 2.0), (1, 1.0)]) == 2  # a straight line


def test_the_smallest_as_good_as_the_best() -> None:
    assert smallest_good([]) is None
    assert smallest_good([(100, 66.0, (64.0, 68.0)), (30, 64.5, (62, 66)), (20, 63.0, (61, 65))]) == 1
    assert smallest_good([(100, 66.0, None), (30, 65.9, (60, 70))]) == 0
    assert smallest_good([(30, 64.0, (63, 65)), (30, 64.5, (63, 66))]) == 1
