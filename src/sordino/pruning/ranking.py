"""A ranking: the order in which layers can go, and how sure each step was. The value behind ranking.json. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.errors import ArtifactError, RecipeError
from sordino.pruning.layer import Layer, parse_layer, renumbered
from sordino.runtime import files


@dataclass(frozen=True)
class RankedRemoval:
    """A layer that a search removed.

    score: of the model without it and all layers before it, on so many select clips; interval: its 95 % interval by
    bootstrap; probability: share of resamples in which this removal is the best of its round; runner_up: the layer
    that wins most of the others.
    """

    layer: Layer
    clips: int
    score: float
    interval: tuple[float, float]
    probability: float
    runner_up: Layer | None
    runner_up_probability: float

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": str(self.layer),
            "clips": self.clips,
            "score": self.score,
            "interval": self.interval,
            "probability": self.probability,
            "runner_up": str(self.runner_up) if self.runner_up else None,
            "runner_up_probability": self.runner_up_probability,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> RankedRemoval:
        low, high = row["interval"]
        return cls(
            layer=parse_layer(row["layer"]),
            clips=row["clips"],
            score=row["score"],
            interval=(low, high),
            probability=row["probability"],
            runner_up=parse_layer(row["runner_up"]) if row["runner_up"] else None,
            runner_up_probability=row["runner_up_probability"],
        )


@dataclass(frozen=True)
class Ranking:
    """method, scope: as the recipe asked; criterion, search: None where no layer was searched for.

    order: layers by their index in the ranked model, the first to go first; removals: what a search found out about
    each of them, empty otherwise; layers: scope -> layers of the ranked model; searched: the order before swaps, empty
    where there were none.
    """

    method: str
    scope: str
    criterion: str | None
    search: str | None
    order: tuple[Layer, ...]
    removals: tuple[RankedRemoval, ...]
    layers: Mapping[str, int]
    searched: tuple[Layer, ...] = ()

    def __iter__(self) -> Iterator[Layer]:
        """The layers, the first to go first."""
        return iter(self.order)

    def to_json(self) -> dict[str, Any]:
        """What ranking.json holds."""
        return {
            "method": self.method,
            "scope": self.scope,
            "criterion": self.criterion,
            "search": self.search,
            "order": [str(layer) for layer in self.order],
            "removals": [removal.to_json() for removal in self.removals],
            "layers": dict(self.layers),
        } | ({"searched": [str(layer) for layer in self.searched]} if self.searched else {})

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Ranking:
        return cls(
            method=record["method"],
            scope=record["scope"],
            criterion=record.get("criterion"),
            search=record.get("search"),
            order=tuple(map(parse_layer, record["order"])),
            removals=tuple(map(RankedRemoval.from_json, record.get("removals", ()))),
            layers=record["layers"],
            searched=tuple(map(parse_layer, record.get("searched", ()))),
        )

    @classmethod
    def read(cls, file: Path) -> Ranking:
        """Raises ArtifactError for a missing or damaged file."""
        record = files.read_json(file, {})
        try:
            return cls.from_json(record)
        except (KeyError, TypeError, ValueError, AttributeError, RecipeError) as error:
            raise ArtifactError(f"{file} is no ranking ({type(error).__name__}: {error}).", files.AGAIN) from None

    def removal_order(self, count: int | None = None) -> list[Layer]:
        """The first `count` layers to go; all of them for None. Raises RecipeError where fewer were ranked."""
        if count is None:
            return list(self.order)
        if not 1 <= count <= len(self.order):
            raise RecipeError(
                f"prune.remove: {count}, but the ranking holds {len(self.order)} removals.", "Raise rank.remove."
            )
        return list(self.order[:count])

    def next_decoder_layers(self, removed: int) -> list[Layer]:
        """Decoder layers that would go next once the first `removed` are gone, by their index in what is left.

        Ends before an encoder layer: what comes after it must wait for its turn.
        """
        layers: list[Layer] = []
        for layer in self.order[removed:]:
            if layer.scope != "decoder":
                break
            layers.append(renumbered(layer, self.order[:removed]))
        return layers
