"""What candidates are to translate, cut into parts that a thread or a worker takes; and how translations are named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sordino.models.features import EncodedClip
from sordino.pruning.engines import Engine
from sordino.pruning.layer import Layer, renumbered
from sordino.pruning.scoring_worker import TranslateTask
from sordino.pruning.speculative import Decoded

Key = tuple[tuple[Layer, ...], int]  # (layers that are out, item) -> greedy ids
Rows = list[tuple[Key, list[int]]]


@dataclass(frozen=True)
class Lot:
    """Translations to make by candidates that share prefix layers. parts: items of one call each.

    named: position of a candidate -> the layer; engine: of the model without `gone`; known: of every item.
    """

    gone: tuple[Layer, ...]
    named: Mapping[int | None, Layer | None]
    engine: Engine
    encoded: Sequence[EncodedClip]
    parts: Sequence[Sequence[int]]
    known: Mapping[int, Sequence[Sequence[int]]]

    def rows(self, results: Iterable[Decoded]) -> Rows:
        return [((out_of(self.gone, self.named[one.candidate]), one.clip), one.ids) for one in results]

    def task(self, part: Sequence[int], max_new_tokens: int, memory: int) -> TranslateTask:
        """One of the parts for a worker in another process."""
        clips, known = tuple(self.encoded[i] for i in part), tuple(self.known[i] for i in part)
        return TranslateTask(self.gone, tuple(self.named), clips, known, max_new_tokens, memory)


def names_of(gone: Sequence[Layer], group: Sequence[Layer | None], removed: Sequence[Layer]) -> Sequence[Layer | None]:
    """Candidates of a group; that of one encoder candidate is scored as the whole of a model without it."""
    return group if group != [None] or list(gone) == list(removed) else [gone[-1]]


def out_of(removed: Sequence[Layer], candidate: Layer | None) -> tuple[Layer, ...]:
    """The layers a candidate does without, in one order whichever way they went."""
    return tuple(sorted([*removed, *([candidate] if candidate else [])]))


def position(removed: Sequence[Layer], layer: Layer | None) -> int | None:
    """As `renumbered`: the index alone, None where no layer goes."""
    return None if layer is None else renumbered(layer, removed).index
