"""Where names stand in a chart: beside their points, covering neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sordino.report.svg import text

LETTER, LINE = 6.4, 14  # width of a letter (a generous mean) and height of a line, at the page's 12 px
ABOVE = 10  # of a line's height, above its baseline
GAP = 4
FAR = 6  # lines that a name may stand away from its point


@dataclass(frozen=True)
class Box:
    """y grows downwards: top is the smaller."""

    left: float
    right: float
    top: float
    bottom: float

    def covers(self, other: Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


def place(points: Sequence[tuple[float, float, str]], radius: float, taken: Sequence[Box], inside: Box) -> list[Markup]:
    """Names of points (x, y, name), each at the first free place: on its right, its left, above, below, then farther.

    A name that stands farther away gets a line to its point. One for which there is no free place is left out: its
    point has a title.
    """
    boxes, drawn = list(taken), []
    for x, y, name in sorted(points, key=lambda point: (point[1], point[0])):
        for box, style, at, far in _places(x, y, LETTER * len(name), radius):
            if inside.holds(box) and not any(box.covers(other) for other in boxes):
                boxes.append(box)
                drawn.append(text(at[0], at[1], f"{style}name", name))
                if far:
                    end = at[0] + (GAP if style == "end " else -GAP)
                    line = Markup('<line class="pointer" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
                    drawn.append(line.format(x, y, end, at[1] - ABOVE / 2 + 1))
                break
    return drawn


def _places(x: float, y: float, width: float, radius: float) -> list[tuple[Box, str, tuple[float, float], bool]]:
    """(box, anchor, baseline, whether it needs a line) of every place, the best first."""
    places = []
    right, left = x + radius + GAP, x - radius - GAP
    for step in sorted(range(-FAR, FAR + 1), key=abs):
        base = y + ABOVE / 2 - 1 + step * LINE
        for style, at in (("", right), ("end ", left)):
            start = at - (width if style else 0)
            places.append((Box(start, start + width, base - ABOVE, base + GAP), style, (at, base), abs(step) > 0))
        if step == 0:
            for base_of in (y - radius - GAP, y + radius + ABOVE):
                box = Box(x - width / 2, x + width / 2, base_of - ABOVE, base_of + GAP)
                places.append((box, "middle ", (x, base_of), False))
    return places
