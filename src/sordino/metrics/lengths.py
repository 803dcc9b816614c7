"""Ranges of clip lengths, as groups of a test set: whether long clips are translated worse."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

RANGES = 4  # quarters of the clips
MIN_CLIPS = 5  # in a range: a corpus score of fewer says little


def deal(seconds: Sequence[float | None]) -> dict[str, list[int]]:
    """Range of lengths -> indices of its clips; a quarter of them each, from the shortest to the longest.

    Clips of one length stay together, so that ranges may be fewer and uneven. Empty where a length is not known, or
    there are too few clips or lengths to tell apart.
    """
    lengths = [length for length in seconds if length is not None]
    if len(lengths) < len(seconds) or len(lengths) < RANGES * MIN_CLIPS:
        return {}
    ranked = sorted(lengths)
    edges = sorted({round(ranked[len(ranked) * i // RANGES], 1) for i in range(1, RANGES)})
    members = [[i for i, length in enumerate(lengths) if _range(length, edges) == n] for n in range(len(edges) + 1)]
    if min(map(len, members)) < MIN_CLIPS:
        return {}
    return dict(zip(_names(edges), members, strict=True))


def _range(length: float, edges: Sequence[float]) -> int:
    return sum(length >= edge for edge in edges)


def _names(edges: Sequence[float]) -> list[str]:
    between = [f"{low:.1f} to {high:.1f} s" for low, high in itertools.pairwise(edges)]
    return [f"under {edges[0]:.1f} s", *between, f"{edges[-1]:.1f} s and more"]
