"""The page's two drawings as inline SVG: bytes against quality, and the importance trials as a heat map.

Drawn here rather than by a plotting library, so that a report is one small file without scripts. Colours are
classes of the page's style sheet, which knows light and dark. Every text goes through markupsafe's escaping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sordino.metrics.base import Score
from sordino.report.model import TEACHER, System, Trial
from sordino.report.rows import MEGABYTE, megabytes

# All lengths in SVG user units.
WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 16, 52
RADIUS, DOT = 9, 4.5
CELL, GAP = 22, 2
HEAT_LEFT, HEAT_TOP, HEAT_RIGHT = 72, 40, 150
STEPS = 9  # colours h0 (low) to h8 (high)


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
class Cell:
    """One square of a heat map. state: 'tried', 'removed' (in this round), 'gone' (before it) or 'kept' (never tried).

    score: None unless tried or removed; step: its colour, 0 to STEPS - 1.
    """

    round: int
    layer: int
    state: str
    score: float | None = None
    step: int | None = None


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    raw = ((high - low) or 1.0) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [index * step for index in range(first, last + 1)]


def scatter(systems: Sequence[System], metric: str, label: str, frontier: Sequence[str] = (), knee: str = "") -> Markup:
    """Weights on disk (x, from 0) against a metric (y) with 95 % intervals; points carry their row's number.

    Points that would cover each other are set side by side. With a frontier, of many systems, all stand at their
    true places as dots, joined by a line along the frontier, and only what is on it carries numbers.
    Empty where fewer than two systems have both values.
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
    x_ticks = ticks(0, max(point.bytes for point in points) / MEGABYTE)
    y_ticks = ticks(min(point.low for point in points), max(point.high for point in points))

    def at_x(value: float) -> float:  # MB
        return LEFT + (WIDTH - LEFT - RIGHT) * value / x_ticks[-1]

    def at_y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    across = f"{label} against megabytes of weights"
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, across)]
    for y in y_ticks:
        parts += [_level("grid", at_y(y)), _text(LEFT - 8, at_y(y) + 4, "end", f"{round(y, 6):g}")]
    for x in x_ticks:
        parts.append(_text(at_x(x), HEIGHT - BOTTOM + 18, "middle", f"{round(x, 6):,g}"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "middle axis", "weights on disk, MB"))
    turned = Markup('<text class="middle axis" transform="translate(14 {}) rotate(-90)">{}</text>')
    parts.append(turned.format((TOP + HEIGHT - BOTTOM) / 2, label))
    parts += [_level("teacher", at_y(point.score.value)) for point in points if point.is_teacher]
    spots = [
        (
            at_x(point.bytes / MEGABYTE),
            min(at_y(point.high), at_y(point.score.value) - RADIUS),
            max(at_y(point.low), at_y(point.score.value) + RADIUS),
        )
        for point in points
    ]
    if frontier:
        places = {p.name: (at_x(p.bytes / MEGABYTE), at_y(p.score.value)) for p in points}
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in (places[name] for name in frontier if name in places))
        parts.append(Markup('<polyline class="frontier" points="{}"/>').format(corners))
        for point in sorted(points, key=lambda p: p.name in frontier):  # the frontier on top
            x, y = places[point.name]
            parts.append(_dot(point, x, at_y(point.low), y, at_y(point.high), point.name in frontier))
            if point.name == knee:
                parts.append(Markup('<circle class="knee" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(x, y, RADIUS))
        return Markup("").join(parts) + Markup("</svg>")
    for point, x in zip(points, _side_by_side(spots), strict=True):
        parts.append(_point(point, x, at_y(point.low), at_y(point.score.value), at_y(point.high)))
    return Markup("").join(parts) + Markup("</svg>")


def _level(style: str, y: float) -> Markup:
    line = Markup('<line class="{0}" x1="{1}" x2="{2}" y1="{3:.1f}" y2="{3:.1f}"/>')
    return line.format(style, LEFT, WIDTH - RIGHT, y)


def _point(point: Point, x: float, low: float, middle: float, high: float) -> Markup:
    """Interval bar, disc and number of one system at the given SVG coordinates."""
    what = f"{point.label}: {point.score.value:.2f}, {megabytes(point.bytes)} MB"
    bar = Markup('<path class="bar" d="M{0:.1f} {1:.1f}V{2:.1f}M{3:.1f} {1:.1f}h8M{3:.1f} {2:.1f}h8"/>')
    disc = Markup('<circle class="point" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(x, middle, RADIUS)
    number = _text(round(x, 1), round(middle + 4, 1), "middle number", str(point.number))
    drawn = (bar.format(x, low, high, x - 4) if low != high else Markup("")) + disc + number
    return Markup("<g><title>{}</title>{}</g>").format(what, drawn)


def _dot(point: Point, x: float, low: float, middle: float, high: float, numbered: bool) -> Markup:
    """As `_point`, but small: pale, or with its number above on the left."""
    what = f"{point.label}: {point.score.value:.2f}, {megabytes(point.bytes)} MB"
    style = "" if numbered else " beaten"
    drawn = Markup('<path class="bar{0}" d="M{1:.1f} {2:.1f}V{3:.1f}"/>').format(style, x, low, high)
    drawn += Markup('<circle class="point{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(style, x, middle, DOT)
    if numbered:
        drawn += _text(round(x - DOT - 3, 1), round(middle - 5, 1), "end axis", str(point.number))  # nothing is there
    return Markup("<g><title>{}</title>{}</g>").format(what, drawn)


def _side_by_side(spots: Sequence[tuple[float, float, float]]) -> list[float]:
    """x of each (x, top, bottom) such that no two points cover each other: the later one steps aside, just enough."""
    taken: list[tuple[float, float, float]] = []
    for x, top, bottom in spots:
        beside = [other + side * 2.1 * RADIUS for other, _, _ in taken for side in (1, -1)]
        free = (
            place
            for place in sorted([x, *beside], key=lambda place: (abs(place - x), -place))
            if place <= WIDTH - RADIUS
            and not any(
                abs(place - other) < 2 * RADIUS and top < low + RADIUS and high < bottom + RADIUS
                for other, high, low in taken
            )
        )
        taken.append((next(free, x), top, bottom))
    return [x for x, _, _ in taken]


def colour_range(scores: Sequence[float]) -> tuple[float, float]:
    """Scores of the palest and the darkest colour: low outliers are cut off at the box plot's whisker (Tukey, 1977).

    One indispensable layer scores near zero without it and would flatten all differences between the others.
    """
    ranked = sorted(scores)
    quarter, three = ranked[len(ranked) // 4], ranked[(3 * len(ranked)) // 4]
    return max(ranked[0], quarter - 1.5 * (three - quarter)), ranked[-1]


def cells(trials: Sequence[Trial], lower_is_better: bool = False) -> list[Cell]:
    """Every round x layer square of one scope's trials, in reading order; the darkest is the least missed."""
    sign = -1 if lower_is_better else 1
    low, high = colour_range([sign * trial.score for trial in trials])
    by_place = {(trial.round, trial.layer): trial for trial in trials}
    removed_in = {trial.layer: trial.round for trial in trials if trial.removed}
    squares = []
    for number in sorted({trial.round for trial in trials}):
        for layer in range(max(trial.layer for trial in trials) + 1):
            trial = by_place.get((number, layer))
            if trial is not None:
                share = (sign * trial.score - low) / (high - low) if high > low else 1.0
                step = min(STEPS - 1, max(0, int(share * STEPS)))
                state = "removed" if trial.removed else "tried"
                squares.append(Cell(number, layer, state, trial.score, step))
            else:
                gone = removed_in.get(layer, number) < number
                squares.append(Cell(number, layer, "gone" if gone else "kept"))
    return squares


def heat_map(trials: Sequence[Trial], scope: str, label: str, lower_is_better: bool = False) -> Markup:
    """Rows are rounds, columns original layer indices; the removed layer is outlined. Empty without trials."""
    chosen = [trial for trial in trials if trial.scope == scope]
    if not chosen:
        return Markup("")
    squares = cells(chosen, lower_is_better)
    numbers = sorted({square.round for square in squares})
    columns = max(square.layer for square in squares) + 1
    pitch = CELL + GAP
    width = max(HEAT_LEFT + columns * pitch + HEAT_RIGHT, 560)
    bottom = HEAT_TOP + len(numbers) * pitch
    parts = [
        Markup('<svg viewBox="0 0 {0} {1}" style="min-width:{2}px;max-width:{0}px" role="img" ').format(
            width, bottom + 44, min(width, 900)
        ),
        Markup('aria-label="{} without each {} layer, by round">').format(label, scope),
        Markup('<text x="{}" y="14" class="axis">{} layer (index in the unpruned model)</text>').format(
            HEAT_LEFT, scope
        ),
    ]
    for layer in range(columns):
        parts.append(_text(HEAT_LEFT + layer * pitch + CELL / 2, HEAT_TOP - 7, "middle", str(layer)))
    for row, number in enumerate(numbers):
        parts.append(_text(HEAT_LEFT - 8, HEAT_TOP + row * pitch + 15, "end", f"round {number}"))
        for trial in chosen:
            if trial.round == number and trial.removed:
                after = f"− layer {trial.layer}: {trial.score:.2f}"
                parts.append(_text(HEAT_LEFT + columns * pitch + 8, HEAT_TOP + row * pitch + 15, "", after))
    for square in squares:
        x = HEAT_LEFT + square.layer * pitch
        y = HEAT_TOP + numbers.index(square.round) * pitch
        parts.append(_square(square, x, y))
    return Markup("").join(parts) + _legend(chosen, bottom + 16, -1 if lower_is_better else 1) + Markup("</svg>")


def _square(square: Cell, x: float, y: float) -> Markup:
    if square.score is None:
        dot = Markup('<circle class="kept" cx="{}" cy="{}" r="2"/>').format(x + CELL / 2, y + CELL / 2)
        return dot if square.state == "kept" else Markup("")
    outline = " removed" if square.state == "removed" else ""
    what = f"round {square.round}, layer {square.layer}: {square.score:.2f}{', removed' if outline else ''}"
    return Markup('<rect class="h{}{}" x="{}" y="{}" width="{}" height="{}" rx="3"><title>{}</title></rect>').format(
        square.step, outline, x, y, CELL, CELL, what
    )


def _legend(trials: Sequence[Trial], y: float, sign: int) -> Markup:
    scores = [sign * trial.score for trial in trials]
    low, high = colour_range(scores)
    beyond = ("≤ " if sign > 0 else "≥ ") if min(scores) < low else ""
    digits = 1 if max(map(abs, scores)) >= 10 else 3  # losses and distances are small numbers
    parts = [_text(HEAT_LEFT - 8, y + 12, "end", f"{beyond}{sign * low:.{digits}f}")]
    for step in range(STEPS):
        parts.append(
            Markup('<rect class="h{}" x="{}" y="{}" width="{}" height="14"/>').format(
                step, HEAT_LEFT + step * CELL, y, CELL
            )
        )
    x = HEAT_LEFT + STEPS * CELL + 8
    parts.append(_text(x, y + 12, "", f"{sign * high:.{digits}f}"))
    x += 60
    parts.append(Markup('<rect class="none removed" x="{}" y="{}" width="16" height="14" rx="3"/>').format(x, y))
    parts.append(_text(x + 24, y + 12, "", "removed"))
    parts.append(Markup('<circle class="kept" cx="{}" cy="{}" r="2"/>').format(x + 98, y + 7))
    parts.append(_text(x + 108, y + 12, "", "never tried"))
    return Markup("").join(parts)


def _text(x: float, y: float, style: str, content: str) -> Markup:
    return Markup('<text x="{:g}" y="{:g}" class="{}">{}</text>').format(x, y, style, content)
