"""Greedy iterative layer importance: which layers translation can spare.

In every round each remaining candidate layer is taken out in turn (a view, no copy), the select clips are scored, and
the layer whose removal hurts least goes for good (Moslem 2025, aclanthology.org/2025.iwslt-1.40). Ties go to the layer
with the lower index, so that a search gives the same order every time. `middle` is the ablation that takes a block
from the middle without looking.

Layers are named by their index in the unpruned model: "decoder.12", "encoder.3".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sordino.compress.layers import check_keep, only
from sordino.errors import RecipeError
from sordino.families.base import Scope, SpeechModel

SCOPES: dict[str, tuple[Scope, ...]] = {
    "decoder": ("decoder",),
    "encoder": ("encoder",),
    "both": ("decoder", "encoder"),
}


@dataclass(frozen=True, order=True)
class Layer:
    """A layer by its index in the unpruned model."""

    scope: Scope
    index: int

    def __str__(self) -> str:
        return f"{self.scope}.{self.index}"


@dataclass(frozen=True)
class Trial:
    """One scored candidate. round 0 with no layer is the unpruned model; digest: of the hypotheses, if any."""

    round: int
    layer: Layer | None
    score: float
    digest: str | None = None

    def to_json(self) -> dict[str, Any]:
        scope, index = (self.layer.scope, self.layer.index) if self.layer else (None, None)
        return {"round": self.round, "scope": scope, "layer": index, "score": self.score, "hypotheses": self.digest}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Trial:
        layer = None if row["layer"] is None else Layer(row["scope"], row["layer"])
        return cls(row["round"], layer, row["score"], row["hypotheses"])


# removed layers -> (score, digest of the hypotheses), with those layers out of the model
Evaluate = Callable[[Sequence[Layer]], tuple[float, str | None]]


def parse_layer(text: str) -> Layer:
    """'12' or 'decoder.12' or 'encoder.3'. Raises RecipeError."""
    scope, _, index = text.rpartition(".")
    if scope not in ("", "decoder", "encoder") or not index.isdigit():
        raise RecipeError(f"'{text}' names no layer.", "Write decoder.12, encoder.3, or 12 for a decoder layer.")
    return Layer("encoder" if scope == "encoder" else "decoder", int(index))


def candidates(speech: SpeechModel, scope: str, protect_first: int, protect_last: int) -> list[Layer]:
    """The layers of a scope that may be removed. Raises RecipeError where the protection leaves none."""
    found: list[Layer] = []
    for each in SCOPES[scope]:
        total = len(speech.layers(each))
        found += [Layer(each, i) for i in range(protect_first, total - protect_last)]
    if not found:
        raise RecipeError(f"rank: every {scope} layer is protected.", "Lower protect_first or protect_last.")
    return found


def middle(speech: SpeechModel, scope: str, remove: int) -> list[Layer]:
    """A block of `remove` layers around the middle of each list of the scope (the paper's 12-19 of 32 for 8)."""
    found: list[Layer] = []
    for each in SCOPES[scope]:
        total = len(speech.layers(each))
        if remove >= total:
            raise RecipeError(f"rank.remove: {remove} of {total} {each} layers would leave none.", "Remove fewer.")
        first = (total - remove) // 2
        found += [Layer(each, i) for i in range(first, first + remove)]
    return found


def kept(total: int, scope: Scope, removed: Sequence[Layer]) -> list[int]:
    """Indices of a scope's `total` layers that stay. Raises RecipeError: out of range, twice, or none left."""
    gone = [layer.index for layer in removed if layer.scope == scope]
    if gone:
        check_keep(gone, total, scope)
    return check_keep([i for i in range(total) if i not in gone], total, scope)


@contextmanager
def without(speech: SpeechModel, removed: Sequence[Layer]) -> Iterator[SpeechModel]:
    """The model without some layers, in both scopes, inside the block."""
    with ExitStack() as stack:
        for scope in SCOPES["both"]:
            if any(layer.scope == scope for layer in removed):
                stack.enter_context(only(speech, scope, kept(len(speech.layers(scope)), scope, removed)))
        yield speech


def search(
    pool: Sequence[Layer],
    remove: int,
    evaluate: Evaluate,
    higher_is_better: bool,
    known: Sequence[Trial],
    record: Callable[[Trial], None],
) -> list[Layer]:
    """Removal order of `remove` layers.

    known: trials of an earlier, interrupted search, which are not run again; record: called with every new trial.
    Raises RecipeError where more layers are to go than there are candidates.
    """
    if remove > len(pool):
        raise RecipeError(f"rank.remove: {remove} layers, but only {len(pool)} are candidates.", "Remove fewer.")
    scores = {(t.round, t.layer): t for t in known}

    def trial(number: int, layer: Layer | None, removed: Sequence[Layer]) -> Trial:
        found = scores.get((number, layer))
        if found is None:
            found = Trial(number, layer, *evaluate(removed))
            record(found)
        return found

    trial(0, None, [])
    order: list[Layer] = []
    for number in range(1, remove + 1):
        left = [layer for layer in pool if layer not in order]
        results = [trial(number, layer, [*order, layer]) for layer in left]
        sign = 1 if higher_is_better else -1
        best = max(results, key=lambda t: sign * t.score)  # the first of equals: pool is in index order
        assert best.layer is not None
        order.append(best.layer)
    return order


def trials_in(pool: int, remove: int) -> int:
    """Number of trials of a search, the unpruned model included."""
    return 1 + sum(pool - i for i in range(remove))
