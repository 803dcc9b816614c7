"""Loss curves of trainings, and lengths of clips, as small inline SVG drawings that fit a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from sordino.report.model import Training
from sordino.report.svg import level, opening, text, ticks

# All lengths in SVG user units.
WIDTH, HEIGHT = 350, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 14, 40
POINTS = 60  # of a curve: means of as many stretches of steps
BINS, BIN, TALL = 24, 5, 24  # of a histogram: columns, their width, its height


def loss_curve(training: Training) -> Markup:
    """Loss (y) by step (x): means of stretches of steps as a line, dev losses as dots. Empty without losses.

    Losses that are no numbers, of a training that diverged, are left out.
    """
    losses = [(step, loss) for step, loss in training.losses if math.isfinite(loss)]
    dev_losses = [(step, loss) for step, loss in training.dev_losses if math.isfinite(loss)]
    if not losses:
        return Markup("")
    curve = means(losses, POINTS)
    values = [value for _, value in (*curve, *dev_losses)]
    y_ticks, last = ticks(min(values), max(values), 4), max(training.losses[-1][0], 2)

    def at(step: float, loss: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / (last - 1)
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (loss - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return f"{x:.1f},{y:.1f}"

    parts = [opening(WIDTH, HEIGHT, f"training loss of {training.label} by step")]
    for index, tick in enumerate(y_ticks):
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * index / (len(y_ticks) - 1)
        parts += [level("grid", LEFT, WIDTH - RIGHT, y), text(LEFT - 6, y + 4, "end", f"{round(tick, 6):g}")]
    for step in sorted({1, (1 + last) // 2, last}):
        parts.append(text(LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / (last - 1), HEIGHT - 22, "middle", f"{step:,}"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle axis", "step"))
    line = Markup('<polyline class="curve" points="{}"/>')
    parts.append(line.format(" ".join(at(step, loss) for step, loss in curve)))
    for step, loss in dev_losses:
        across, down = at(step, loss).split(",")
        dot = Markup('<circle class="dev" cx="{}" cy="{}" r="4"><title>step {:,}: dev loss {:.3f}</title></circle>')
        parts.append(dot.format(across, down, step, loss))
    return Markup("").join(parts) + Markup("</svg>")


def means(losses: Sequence[tuple[int, float]], count: int) -> list[tuple[float, float]]:
    """At most `count` points (mean step, mean loss) of equal stretches of a log, in order."""
    size = -(-len(losses) // count)
    stretches = [losses[i : i + size] for i in range(0, len(losses), size)]
    return [(sum(s for s, _ in part) / len(part), sum(loss for _, loss in part) / len(part)) for part in stretches]


def histogram(seconds: Sequence[float], longest: float) -> Markup:
    """How many clips are how long, from 0 to `longest` seconds."""
    counts = [0] * BINS
    for length in seconds:
        counts[min(BINS - 1, int(BINS * length / longest))] += 1
    parts = [opening(BINS * BIN, TALL, f"lengths of clips, 0 to {longest:.1f} seconds", "histogram")]
    column = Markup('<rect x="{}" y="{:.1f}" width="{}" height="{:.1f}"/>')
    for index, count in enumerate(counts):
        height = TALL * count / max(counts)
        if count:
            parts.append(column.format(index * BIN, TALL - height, BIN - 1, height))
    return Markup("").join(parts) + Markup("</svg>")
