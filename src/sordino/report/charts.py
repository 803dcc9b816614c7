"""Bytes against quality as inline SVG.

Drawn here rather than by a plotting library, so that a report is one small file. Colours are classes of the page's
style sheet, which knows light and dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sordino.metrics.base import Score
from sordino.report.labels import Box, place
from sordino.report.model import TEACHER, System
from sordino.report.rows import MEGABYTE, megabytes
from sordino.report.svg import level, opening, text, ticks

# All lengths in SVG user units.
WIDTH, HEIGHT = 760, 380
NARROW = 350  # of a phone: points carry their row's number alone
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 16, 52
RADIUS, DOT = 9, 4.5
BAR = 4  # half of an interval's end


@dataclass(frozen=True)
class Point:
    """One system of the scatter. number: its row in the table; bytes: of its weights."""

    number: int
    name: str
    label: str
    bytes: int
    score: Score
    is_teacher: bool

    @property
    def low(self) -> float:
        return self.score.interval[0] if self.score.interval else self.score.value

    @property
    def high(self) -> float:
        return self.score.interval[1] if self.score.interval else self.score.value


@dataclass(frozen=True)
class Spot:
    """A point in SVG coordinates, y downwards: top and bottom of its interval, middle of its disc."""

    point: Point
    x: float
    top: float
    middle: float
    bottom: float


def scatter(
    systems: Sequence[System],
    metric: str,
    label: str,
    frontier: Sequence[str] = (),
    knee: str = "",
    width: int = WIDTH,
) -> Markup:
    """Weights on disk (x, from 0) against a metric (y) with 95 % intervals; points carry their row's number.

    Points that would cover each other are set side by side. With a frontier, of many systems, all stand at their
    true places as dots, joined by a line along the frontier, and only what is on it is named. A narrow drawing has
    no names. Empty where fewer than two systems have both values.
    """
    points = [
        Point(
            number, system.name, system.label, system.size.weights_bytes, system.scores[metric], system.name == TEACHER
        )
        for number, system in enumerate(systems, start=1)
        if system.size and metric in system.scores
    ]
    if len(points) < 2:
        return Markup("")
    x_ticks = ticks(0, max(point.bytes for point in points) / MEGABYTE, 6 if width == WIDTH else 4)
    y_ticks = ticks(min(point.low for point in points), max(point.high for point in points))

    def at_x(value: float) -> float:  # MB
        return LEFT + (width - LEFT - RIGHT) * value / x_ticks[-1]

    def at_y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    names = width == WIDTH
    drawing = opening(width, HEIGHT, f"{label} against megabytes of weights", "wide" if names else "narrow")
    parts = [drawing, *_axes(x_ticks, y_ticks, label, width)]
    parts += [level("teacher", LEFT, width - RIGHT, at_y(point.score.value)) for point in points if point.is_teacher]
    spots = [
        Spot(p, at_x(p.bytes / MEGABYTE), at_y(p.high), at_y(p.score.value), at_y(p.low)) for p in points
    ]  # the higher the value, the smaller y
    if frontier:
        parts += _along_frontier(spots, frontier, knee, names)
    else:
        spots = side_by_side(spots, width)
        parts += [_drawn(spot, RADIUS, "") for spot in spots]
        parts += [text(s.x, s.middle + 4, "middle number", str(s.point.number)) for s in spots]
        parts += _names(spots, RADIUS, spots, width) if names else []
    return Markup("").join(parts) + Markup("</svg>")


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], label: str, width: int) -> list[Markup]:
    parts = []
    for index, y in enumerate(y_ticks):
        height = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * index / (len(y_ticks) - 1)
        parts += [level("grid", LEFT, width - RIGHT, height), text(LEFT - 8, height + 4, "end", f"{round(y, 6):g}")]
    for index, x in enumerate(x_ticks):
        across = LEFT + (width - LEFT - RIGHT) * index / (len(x_ticks) - 1)
        parts.append(text(across, HEIGHT - BOTTOM + 18, "middle", f"{round(x, 6):,g}"))
    parts.append(text((LEFT + width - RIGHT) / 2, HEIGHT - 10, "middle axis", "weights on disk, MB"))
    turned = Markup('<text class="middle axis" transform="translate(14 {}) rotate(-90)">{}</text>')
    return [*parts, turned.format((TOP + HEIGHT - BOTTOM) / 2, label)]


def _along_frontier(spots: Sequence[Spot], frontier: Sequence[str], knee: str, names: bool) -> list[Markup]:
    """The line, and the dots of all systems, those of the frontier on top and named (or numbered)."""
    on_it = [spot for name in frontier for spot in spots if spot.point.name == name]
    corners = " ".join(f"{spot.x:.1f},{spot.middle:.1f}" for spot in on_it)
    parts = [Markup('<polyline class="frontier" points="{}"/>').format(corners)]
    for spot in sorted(spots, key=lambda spot: spot.point.name in frontier):
        parts.append(_drawn(spot, DOT, "" if spot.point.name in frontier else " beaten"))
        if spot.point.name == knee:
            ring = Markup('<circle class="knee" cx="{:.1f}" cy="{:.1f}" r="{}"/>')
            parts.append(ring.format(spot.x, spot.middle, RADIUS))
    if names:
        return parts + _names(on_it, DOT, spots, WIDTH, _boxes_along([(spot.x, spot.middle) for spot in on_it]))
    # above on the left of a frontier's point there is nothing
    return parts + [text(s.x - DOT - 3, s.middle - 5, "end axis", str(s.point.number)) for s in on_it]


def _boxes_along(corners: Sequence[tuple[float, float]], step: float = 6) -> list[Box]:
    """Small boxes that cover a line."""
    boxes = []
    for (x, y), (to_x, to_y) in itertools.pairwise(corners):
        count = max(1, round(math.hypot(to_x - x, to_y - y) / step))
        places = ((x + (to_x - x) * i / count, y + (to_y - y) * i / count) for i in range(count + 1))
        boxes += [Box(a - step / 2, a + step / 2, b - 1, b + 1) for a, b in places]
    return boxes


def _names(
    named: Sequence[Spot], radius: float, spots: Sequence[Spot], width: int, lines: Sequence[Box] = ()
) -> list[Markup]:
    """The labels of points beside them, where they cover neither each other nor a point nor a line."""
    there = [Box(s.x - radius, s.x + radius, s.middle - radius, s.middle + radius) for s in spots]
    there += [Box(s.x - BAR, s.x + BAR, s.top, s.bottom) for s in spots]
    there += [Box(LEFT, width, s.middle - 1, s.middle + 1) for s in spots if s.point.is_teacher]  # the dashed line
    there += lines
    inside = Box(LEFT, width, 0, HEIGHT - BOTTOM)
    return place([(s.x, s.middle, s.point.label) for s in named], radius, there, inside)


def _drawn(spot: Spot, radius: float, style: str) -> Markup:
    """Interval bar and disc of one system."""
    point = spot.point
    what = f"{point.label}: {point.score.value:.2f}, {megabytes(point.bytes)} MB"
    bar = Markup("")
    if point.score.interval:
        path = f"M{spot.x:.1f} {spot.bottom:.1f}V{spot.top:.1f}"
        ends = f"M{spot.x - BAR:.1f} {spot.bottom:.1f}h{2 * BAR}M{spot.x - BAR:.1f} {spot.top:.1f}h{2 * BAR}"
        bar = Markup('<path class="bar{}" d="{}"/>').format(style, path + ("" if radius == DOT else ends))
        what += f", 95 % {point.low:.1f} to {point.high:.1f}"
    disc = Markup('<circle class="point{}" cx="{:.1f}" cy="{:.1f}" r="{:g}"/>')
    return Markup("<g><title>{}</title>{}{}</g>").format(what, bar, disc.format(style, spot.x, spot.middle, radius))


def side_by_side(spots: Sequence[Spot], width: int) -> list[Spot]:
    """The spots such that no two discs cover each other's disc or bar: the later one steps aside, just enough."""
    taken: list[Spot] = []
    for spot in spots:
        beside = [other.x + side * 2.1 * RADIUS for other in taken for side in (1, -1)]
        places = sorted([spot.x, *beside], key=lambda x: (abs(x - spot.x), -x))
        free = (x for x in places if x <= width - RADIUS and not any(_covers(x, spot, other) for other in taken))
        taken.append(Spot(spot.point, next(free, spot.x), spot.top, spot.middle, spot.bottom))
    return taken


def _covers(x: float, spot: Spot, other: Spot) -> bool:
    def extent(one: Spot) -> tuple[float, float]:
        return min(one.top, one.middle - RADIUS), max(one.bottom, one.middle + RADIUS)

    (top, bottom), (high, low) = extent(spot), extent(other)
    return abs(x - other.x) < 2 * RADIUS and top < low + RADIUS and high < bottom + RADIUS
