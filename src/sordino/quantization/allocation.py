"""Bits for every part of a model under a limit of bytes: a multiple-choice knapsack, solved exactly.

A part (a layer's attention, its MLP, the embedding, ...) has options: bits, the bytes they take, and what they cost the
model. One option of every part is chosen, so that the costs' sum is least and the bytes fit. Layers that are next in a
ranking may be dropped as well, the first of them or the first two and so on, at a cost measured for each number: the
knapsack is then solved for every number of dropped layers.

How: part after part, all sums (bytes, cost) that none of the others beats in both are kept. A sum is thrown away too
where even the linear relaxation of what is left (Dyer 1984, Zemel 1984: parts may be split between neighbouring options
on their convex hulls) would not bring it below a solution already known. Bytes and costs are integers, so that nothing
is decided by rounding; a 7B model's hundred parts to the byte take a tenth of a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sordino.errors import RecipeError

COST_UNIT = 1e-12  # costs are compared in steps of this

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Option:
    """bits: of every weight; bytes: of the whole part as stored; cost: added to the model's, in any unit."""

    bits: int
    bytes: int
    cost: float


@dataclass(frozen=True)
class Drop:
    """One more layer dropped: the parts that go with it, the bytes of what belongs to no part (norms), and the cost of
    the model without this layer and all drops before it."""

    layer: str
    parts: tuple[str, ...]
    bytes: int
    cost: float


@dataclass(frozen=True)
class Choice:
    """bits: by part, of those that are left; dropped: so many layers of the ranking; bytes, cost: sums."""

    bits: dict[str, int]
    dropped: int
    bytes: int
    cost: float


def choose(parts: Mapping[str, Sequence[Option]], budget: int, fixed: int = 0, drops: Sequence[Drop] = ()) -> Choice:
    """The cheapest choice of at most `budget` bytes, `fixed` (what is never changed) included.

    Of equal costs the one of fewer dropped layers, then of fewer bytes. Raises RecipeError where nothing fits, naming
    the smallest possible budget.
    """
    best: Choice | None = None
    for count in range(len(drops) + 1):
        remaining, rest = _without(parts, fixed, drops[:count])
        chosen = _solve(list(remaining.values()), budget - rest)
        if chosen is None:
            continue
        taken = {name: options[i] for (name, options), i in zip(remaining.items(), chosen, strict=True)}
        cost = sum(option.cost for option in taken.values()) + (drops[count - 1].cost if count else 0.0)
        if best is None or _units(cost) < _units(best.cost):
            size = rest + sum(option.bytes for option in taken.values())
            best = Choice({name: option.bits for name, option in taken.items()}, count, size, cost)
    if best is None:
        least = smallest(parts, fixed, drops)
        raise RecipeError(
            f"a budget of {budget:,} bytes is too small: {least:,} is the smallest possible.",
            "Raise the budget, or start from a smaller model (prune more layers, trim the vocabulary).",
        )
    return best


def smallest(parts: Mapping[str, Sequence[Option]], fixed: int = 0, drops: Sequence[Drop] = ()) -> int:
    """Bytes below which there is no choice."""
    cases = (_without(parts, fixed, drops[:count]) for count in range(len(drops) + 1))
    return min(
        rest + sum(min(option.bytes for option in options) for options in remaining.values())
        for remaining, rest in cases
    )


def _without(
    parts: Mapping[str, Sequence[Option]], fixed: int, drops: Sequence[Drop]
) -> tuple[dict[str, Sequence[Option]], int]:
    """Parts and fixed bytes that are left."""
    gone = {part for drop in drops for part in drop.parts}
    remaining = {name: options for name, options in parts.items() if name not in gone}
    return remaining, fixed - sum(drop.bytes for drop in drops)


def _units(cost: float) -> int:
    return round(cost / COST_UNIT)


def _solve(parts: Sequence[Sequence[Option]], room: int) -> list[int] | None:
    """Index of the chosen option of every part; None where they do not fit."""
    tables = [(np.array([o.bytes for o in p]), np.array([_units(o.cost) for o in p])) for p in parts]
    # parts with much at stake first: what is left then matters little, and its bound is tight
    order = sorted(range(len(parts)), key=lambda i: (-int(np.ptp(tables[i][0])), i))
    ordered = [tables[i] for i in order]
    relaxed = [_Relaxed(ordered[i:]) for i in range(len(ordered) + 1)]
    if relaxed[0].least > room:
        return None
    bound = relaxed[0].rounded_down(room)
    slack = 1 + abs(bound) * 1e-9 + relaxed[0].rounding  # of the bounds, which are computed in floating point
    size, cost = np.zeros(1, np.int64), np.zeros(1, np.int64)
    trail: list[tuple[Ints, Ints]] = []
    for (sizes, costs), rest in zip(ordered, relaxed[1:], strict=True):
        sums = (size[:, None] + sizes[None, :]).ravel(), (cost[:, None] + costs[None, :]).ravel()
        kept = np.flatnonzero(sums[0] + rest.least <= room)
        kept = kept[sums[1][kept] + rest.bound(room - sums[0][kept]) <= bound + slack]
        kept = kept[np.lexsort((sums[1][kept], sums[0][kept]))]
        ranked = sums[1][kept]
        before = np.minimum.accumulate(ranked)
        better = np.ones(len(kept), bool)
        better[1:] = ranked[1:] < before[:-1]
        kept = kept[better]
        size, cost = sums[0][kept], sums[1][kept]
        trail.append((kept // len(sizes), kept % len(sizes)))
    at = int(np.argmin(cost)) if len(cost) else 0
    options_taken = [0] * len(parts)
    for part, (parents, options) in zip(reversed(order), reversed(trail), strict=True):
        options_taken[part] = int(options[at])
        at = int(parents[at])
    return options_taken


class _Relaxed:
    """The parts that are left, where each may be split between neighbouring options of its lower convex hull.

    least: bytes of their smallest options.
    """

    def __init__(self, tables: Sequence[tuple[Ints, Ints]]) -> None:
        self.least = sum(int(sizes.min()) for sizes, _ in tables)
        self.base = 0  # cost of the hulls' first options
        steps: list[tuple[float, int, int, int]] = []  # cost a byte, which part, bytes, cost
        for part, (sizes, costs) in enumerate(tables):
            hull = _hull(sizes, costs)
            self.base += hull[0][1]
            for (small, dear), (large, cheap) in itertools.pairwise(hull):
                steps.append(((cheap - dear) / (large - small), part, large - small, cheap - dear))
        self.steps = sorted(steps)
        self.sizes = np.concatenate([[0], np.cumsum([step[2] for step in self.steps])]).astype(np.float64)
        self.costs = np.concatenate([[0], np.cumsum([step[3] for step in self.steps])]).astype(np.float64)
        self.rounding = float(np.abs(self.costs).max()) * 1e-12

    def bound(self, room: Ints) -> NDArray[np.float64]:
        """No choice of at most so many bytes costs less. room: (n,), each at least `least`."""
        return np.asarray(self.base + np.interp(room - self.least, self.sizes, self.costs))

    def rounded_down(self, room: int) -> int:
        """Cost of a choice that does fit: steps in their order, those that do not fit (and what follows) left out."""
        free, cost, stopped = room - self.least, self.base, set()
        for _, part, size, gain in self.steps:
            if part in stopped or size > free:
                stopped.add(part)
            else:
                free, cost = free - size, cost + gain
        return cost


def _hull(sizes: Ints, costs: Ints) -> list[tuple[int, int]]:
    """(bytes, cost) on the lower convex hull from the smallest option to the cheapest, bytes rising, costs falling."""
    hull: list[tuple[int, int]] = []
    for size, cost in sorted(zip(sizes.tolist(), costs.tolist(), strict=True)):
        if hull and cost >= hull[-1][1]:
            continue
        while len(hull) > 1:
            (a, x), (b, y) = hull[-2:]
            if (y - x) * (size - b) < (cost - y) * (b - a):  # steeper before than after: convex
                break
            hull.pop()
        hull.append((size, cost))
    return hull
