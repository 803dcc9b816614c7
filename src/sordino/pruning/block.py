"""The block of layers that changes the least: the baseline of Gromov et al. 2024 (arxiv.org/abs/2403.17887).

A block's distance is the angular distance between what enters its first layer and what leaves its last, at the
prompt's last token, averaged over the clips; one pass over the prompts gives it for every block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sordino.errors import RecipeError
from sordino.models.features import EncodedClip
from sordino.models.speech import SpeechModel
from sordino.pruning import criteria
from sordino.pruning.engines import open_engine
from sordino.pruning.layer import Layer


@torch.no_grad()
def distances(
    speech: SpeechModel,
    encoded: Sequence[EncodedClip],
    pool: Sequence[Layer],
    remove: int,
    memory: int,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[int, float]:
    """First layer -> mean distance, 0 to 1, of every block of `remove` neighbours among the candidates.

    memory: bytes for batches. Raises RecipeError where no such block is among the candidates.
    """
    there = {layer.index for layer in pool if layer.scope == "decoder"}
    firsts = [first for first in sorted(there) if there.issuperset(range(first, first + remove))]
    if not firsts:
        raise RecipeError(
            f"rank.remove: no {remove} neighbours are all candidates.", "Remove fewer, or protect fewer layers."
        )
    engine = open_engine(speech, 0, memory)
    sums = dict.fromkeys(firsts, 0.0)
    for batch in engine.batches(encoded, range(len(encoded)), {}):
        ends: list[Tensor] = []  # what enters each layer at the last token, and what leaves the last: (B, 1, H)
        for _, before, after, _ in engine.states(encoded, batch):
            ends[-1:] = [before[:, -1:], after[:, -1:]]
        for first in firsts:
            sums[first] += float(criteria.angular(ends[first], ends[first + remove]).sum())
        advance(len(batch))
    return {first: total / len(encoded) for first, total in sums.items()}


def closest(found: dict[int, float], remove: int) -> list[Layer]:
    """The layers of the block with the least distance, the first of equals, from front to back."""
    first = min(found, key=lambda at: (found[at], at))
    return [Layer("decoder", index) for index in range(first, first + remove)]
