"""The knapsack against brute force, its refusals, drops in their order, and how many sums a 7B model's size takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.errors import RecipeError
from sordino.quantization import allocation
from sordino.quantization.allocation import COST_UNIT, Drop, Option, choose, smallest

Parts = dict[str, list[Option]]


def options() -> st.SearchStrategy[list[Option]]:
    """Of any shape: costs may fall with fewer bits (measured on few clips they do), bytes may be equal."""
    one = st.tuples(st.integers(0, 40), st.integers(-30, 100))
    return st.lists(one, min_size=1, max_size=4).map(
        lambda found: [Option(i, size, cost / 8) for i, (size, cost) in enumerate(found)]
    )


def parts() -> st.SearchStrategy[Parts]:
    return st.lists(options(), min_size=1, max_size=5).map(lambda found: {f"p{i}": o for i, o in enumerate(found)})


def brute_force(
    parts: Mapping[str, Sequence[Option]], budget: int, fixed: int, drops: Sequence[Drop]
) -> tuple[float, int, int] | None:
    """(cost, dropped layers, bytes) of the best choice."""
    found = []
    for count in range(len(drops) + 1):
        gone = {part for drop in drops[:count] for part in drop.parts}
        left = [options for name, options in parts.items() if name not in gone]
        for taken in itertools.product(*left):
            size = fixed - sum(drop.bytes for drop in drops[:count]) + sum(option.bytes for option in taken)
            cost = sum(option.cost for option in taken) + (drops[count - 1].cost if count else 0)
            if size <= budget:
                found.append((cost, count, size))
    return min(found, default=None)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Parts, int, int, list[Drop]]:
    drawn = draw(parts())
    names = draw(st.permutations(list(drawn)))
    costs = draw(st.lists(st.integers(-10, 120), max_size=min(3, len(names))))
    drops = [Drop(f"layer {n}", (n,), i, cost / 8) for i, (n, cost) in enumerate(zip(names, costs, strict=False))]
    return drawn, draw(st.integers(0, 150)), draw(st.integers(3, 20)), drops


@settings(max_examples=400, deadline=None)
@given(problems())
def test_the_choice_is_brute_forces(problem: tuple[Parts, int, int, list[Drop]]) -> None:
    drawn, budget, fixed, drops = problem
    best = brute_force(drawn, budget, fixed, drops)
    if best is None:
        with pytest.raises(RecipeError, match=f"{smallest(drawn, fixed, drops):,} is the smallest"):
            choose(drawn, budget, fixed, drops)
        assert brute_force(drawn, smallest(drawn, fixed, drops), fixed, drops) is not None
        return
    found = choose(drawn, budget, fixed, drops)
    assert (found.cost, found.dropped, found.bytes) == best
    gone = {part for drop in drops[: found.dropped] for part in drop.parts}
    taken = {name: drawn[name][bits] for name, bits in found.bits.items()}
    assert set(taken) == set(drawn) - gone
    freed = sum(drop.bytes for drop in drops[: found.dropped])
    assert sum(option.bytes for option in taken.values()) + fixed - freed == found.bytes <= budget


def test_the_smallest_budget_is_accepted_and_a_byte_less_is_not() -> None:
    parts = {"a": [Option(4, 50, 1.0), Option(8, 100, 0.1)], "b": [Option(4, 7, 1.0), Option(16, 28, 0.0)]}
    drops = [Drop("layer", ("b",), 2, 5.0)]
    assert smallest(parts, 10, drops) == 58
    assert choose(parts, 58, 10, drops).dropped == 1
    with pytest.raises(RecipeError, match=r"57 bytes is too small: 58 .*Raise the budget"):
        choose(parts, 57, 10, drops)


def test_a_later_layer_is_dropped_only_after_the_earlier_ones() -> None:
    parts = {name: [Option(16, 100, 0.0)] for name in "abc"}
    cheap_second = [Drop("a", ("a",), 0, 9.0), Drop("b", ("b",), 0, 9.5)]
    assert choose(parts, 200, 0, cheap_second).bits == {"b": 16, "c": 16}
    assert choose(parts, 100, 0, cheap_second) == choose(parts, 199, 0, cheap_second)
    assert choose(parts, 100, 0, cheap_second).bits == {"c": 16}


def test_costs_below_the_unit_are_equal() -> None:
    parts = {"a": [Option(8, 10, COST_UNIT / 4), Option(16, 20, 0.0)]}
    assert choose(parts, 100).bytes == 10


@pytest.mark.parametrize("share", [0.14, 0.25, 0.4, 0.8])
def test_a_large_model_needs_few_sums(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2-Audio-7B's parts to the byte: 32 attentions, 32 MLPs, 32 encoder layers, head, embedding, projector."""
    rng = np.random.default_rng(0)
    weights = [67_108_864] * 32 + [135_266_304] * 32 + [19_660_800] * 32 + [639_107_072] * 2 + [5_242_880]
    parts: Parts = {}
    for i, count in enumerate(weights):
        harm = rng.lognormal(-6, 1)
        sizes = {bits: count * bits // 8 + (count // 64 if bits < 16 else 0) for bits in (2, 3, 4, 8, 16)}
        parts[f"p{i}"] = [
            Option(bits, size + int(rng.integers(500)), harm * 4.0 ** (4 - bits) * rng.uniform(0.8, 1.2) * (bits < 16))
            for bits, size in sizes.items()
        ]
    total = sum(options[-1].bytes for options in parts.values())
    counts, bound = [], allocation._Relaxed.bound

    def counting(rest: allocation._Relaxed, room: allocation.Ints) -> np.ndarray:
        counts.append(len(room))
        return bound(rest, room)

    monkeypatch.setattr(allocation._Relaxed, "bound", counting)
    choice = choose(parts, int(total * share), 1_000_000, [Drop("x", ("p3", "p35"), 16_384, 0.02)])
    assert 0.98 * total * share < choice.bytes <= total * share
    assert len(counts) > 150  # parts, without and with the drop
    assert max(counts) < 5_000  # some 400; without the bound there are more with every part
