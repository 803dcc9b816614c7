"""What the drawings share: text, lines, round numbers for an axis. Every text goes through markupsafe's escaping."""

from __future__ import annotations

import math

from markupsafe import Markup


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    raw = ((high - low) or 1.0) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [index * step for index in range(first, last + 1)]


def text(x: float, y: float, style: str, content: str) -> Markup:
    return Markup('<text x="{:g}" y="{:g}" class="{}">{}</text>').format(round(x, 1), round(y, 1), style, content)


def level(style: str, left: float, right: float, y: float) -> Markup:
    """A line from side to side."""
    line = Markup('<line class="{0}" x1="{1:g}" x2="{2:g}" y1="{3:.1f}" y2="{3:.1f}"/>')
    return line.format(style, left, right, y)


def opening(width: float, height: float, label: str, style: str = "") -> Markup:
    """label: what a screen reader says of the drawing."""
    return Markup('<svg viewBox="0 0 {:g} {:g}" role="img" class="{}" aria-label="{}">').format(
        width, height, style, label
    )
