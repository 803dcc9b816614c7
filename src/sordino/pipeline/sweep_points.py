"""The points of a sweep: smaller forms of the chain's models, from the recipe alone. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from sordino.config import chain
from sordino.config.schema import Recipe, SweepSection
from sordino.formats import registry as formats
from sordino.formats.registry import MIXED

PRUNED = "pruned"  # a point's form that is no export format


@dataclass(frozen=True)
class SweepPoint:
    """A point to be made.

    of: the model it starts from; form: an export format, or PRUNED; amount: the ratio of format mixed, or so many
    layers removed; settings: recipe overrides with which `export` or `prune` make it.
    """

    key: str
    label: str
    of: str
    form: str
    amount: float
    settings: tuple[str, ...]


def points_of(recipe: Recipe, section: SweepSection, layers: int) -> list[SweepPoint]:
    """The points to make; what the chain makes anyway is not among them. layers: that are ranked."""
    last = chain.last_unrounded(recipe)
    points = []
    for of in section.of or dict.fromkeys((chain.ranked_model(recipe), last)):
        for form in section.formats or formats.FORMATS:
            exported = of == last and form in chain.scored(recipe) and form != MIXED
            if form == "bf16" or exported:  # the model itself, or what is scored already
                continue
            points += [
                exported_point(recipe, of, form, ratio)
                for ratio in (section.budget_ratios if form == MIXED else (None,))
            ]
    already = (recipe.prune.remove or layers) if recipe.prune else 0
    counts = section.remove or ((layers // 2,) if layers > 1 else ())
    return points + [pruned_point(recipe, count) for count in counts if count != already]


def exported_point(recipe: Recipe, of: str, form: str, ratio: float | None) -> SweepPoint:
    """ratio: of format mixed."""
    settings = [f"export.of={of}", f"export.formats=[{form}]"]
    key, label = f"{of}-{form}", f"{chain.labels(recipe)[of]}, {form}"
    if ratio is not None:
        settings.append(f"export.budget_ratio={ratio:g}")
        key, label = f"{key}-{ratio:g}", f"{label} {100 * ratio:g} %"
    return SweepPoint(key, label, of, form, ratio or 0.0, tuple(settings))


def pruned_point(recipe: Recipe, count: int) -> SweepPoint:
    of = chain.ranked_model(recipe)
    label = f"{chain.labels(recipe)[of]} without {count} layers"
    return SweepPoint(f"pruned-{count}", label, of, PRUNED, count, (f"prune.remove={count}",))
