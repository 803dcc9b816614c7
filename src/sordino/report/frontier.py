"""Which systems no other beats in both size and quality, and where more bytes stop paying."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]  # bytes, score


def frontier(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other has fewer bytes and a higher score than, by size.

    Of equal points the first.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    line: list[int] = []
    for i in order:
        if not line or points[i][1] > points[line[-1]][1]:
            line.append(i)
    return line


def knee(points: Sequence[Point]) -> int | None:
    """Index of the frontier's knee: the point farthest above the line from its smallest to its best (Satopaa et al.
    2011, "Kneedle"), both axes scaled to that line. None for a frontier of no points; its smallest where none is above.
    """
    line = frontier(points)
    if not line:
        return None
    (small, low), (large, high) = points[line[0]], points[line[-1]]
    if len(line) < 3:
        return line[0] if low >= high or len(line) == 1 else line[-1]

    def above(i: int) -> float:
        size, score = points[i]
        return (score - low) / (high - low) - (size - small) / (large - small)

    return max(line, key=above)  # the first of equals: the smallest


def smallest_good(points: Sequence[tuple[float, float, tuple[float, float] | None]]) -> int | None:
    """Index of the smallest of (bytes, score, 95 % interval) whose score lies in the interval of the best one's.

    The best itself where it has no interval; of equally small ones the better; None for no points.
    """
    if not points:
        return None
    _, score, interval = max(points, key=lambda point: point[1])
    least = interval[0] if interval else score
    good = [i for i, point in enumerate(points) if point[1] >= least]
    return min(good, key=lambda i: (points[i][0], -points[i][1]))
