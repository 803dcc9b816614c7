"""The importance trials as a heat map: rows are rounds of the search, columns layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sordino.report.model import Trial
from sordino.report.svg import text

# All lengths in SVG user units.
CELL, GAP = 22, 2
HEAT_LEFT, HEAT_TOP, HEAT_RIGHT = 72, 40, 150
STEPS = 9  # colours h0 (low) to h8 (high)


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
        parts.append(text(HEAT_LEFT + layer * pitch + CELL / 2, HEAT_TOP - 7, "middle", str(layer)))
    for row, number in enumerate(numbers):
        parts.append(text(HEAT_LEFT - 8, HEAT_TOP + row * pitch + 15, "end", f"round {number}"))
        for trial in chosen:
            if trial.round == number and trial.removed:
                after = f"− layer {trial.layer}: {trial.score:.2f}"
                parts.append(text(HEAT_LEFT + columns * pitch + 8, HEAT_TOP + row * pitch + 15, "", after))
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
    parts = [text(HEAT_LEFT - 8, y + 12, "end", f"{beyond}{sign * low:.{digits}f}")]
    for step in range(STEPS):
        parts.append(
            Markup('<rect class="h{}" x="{}" y="{}" width="{}" height="14"/>').format(
                step, HEAT_LEFT + step * CELL, y, CELL
            )
        )
    x = HEAT_LEFT + STEPS * CELL + 8
    parts.append(text(x, y + 12, "", f"{sign * high:.{digits}f}"))
    x += 60
    parts.append(Markup('<rect class="none removed" x="{}" y="{}" width="16" height="14" rx="3"/>').format(x, y))
    parts.append(text(x + 24, y + 12, "", "removed"))
    parts.append(Markup('<circle class="kept" cx="{}" cy="{}" r="2"/>').format(x + 98, y + 7))
    parts.append(text(x + 108, y + 12, "", "never tried"))
    return Markup("").join(parts)
