"""A setting's limits are its own, and every setting says what it means."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sordino.config.schema import (
    DistilSection,
    FinetuneSection,
    MixSection,
    QloraSection,
    RankSection,
    Recipe,
    ReportSection,
    SweepSection,
    TrainSection,
)
from sordino.config.sections import hints, section_in
from sordino.config.setting import Limits, limits_of, meaning_of, out_of_limits, setting


@dataclass(frozen=True)
class Inner:
    share: float = setting(0.5, "a share", least=0, below=1)


@dataclass(frozen=True)
class Outer:
    rank: int = setting(3, "a count", least=1, most=9)
    rate: float | None = setting(None, "a rate", above=0)
    shares: tuple[float, ...] = setting((), "some shares", above=0, below=1)
    names: tuple[str, ...] = setting((), "some names")
    inner: Inner = Inner()
    other: Inner | None = None


@pytest.mark.parametrize(
    ("section", "problems"),
    [
        (Outer(), []),
        (Outer(rank=1, rate=1e-9, shares=(0.1, 0.9), names=("a",), other=Inner(0)), []),
        (Outer(rank=9), []),
        (Outer(rank=0), ["rank: must be at least 1, found 0"]),
        (Outer(rank=10), ["rank: must be at most 9, found 10"]),
        (Outer(rate=0.0), ["rate: must be above 0, found 0"]),
        (Outer(rate=float("nan")), ["rate: nan is not a number to compute with"]),
        (Outer(rate=float("inf")), ["rate: inf is not a number to compute with"]),
        (Outer(inner=Inner(1.0)), ["inner.share: must be below 1, found 1"]),
        (Outer(other=Inner(-0.5)), ["other.share: must be at least 0, found -0.5"]),
        (Outer(shares=(0.5, 1.0)), ["shares: each must be above 0 and below 1"]),
        (Outer(shares=(float("nan"),)), ["shares: each must be above 0 and below 1"]),
        (Outer(rank=0, inner=Inner(2)), ["rank: must be at least 1, found 0", "inner.share: must be below 1, found 2"]),
    ],
)
def test_limits(section: Outer, problems: list[str]) -> None:
    assert out_of_limits(section) == problems


def test_limits_read_as_words() -> None:
    assert str(Limits()) == ""
    assert str(Limits(least=0, below=1)) == "at least 0 and below 1"
    assert str(Limits(above=0.5, most=100)) == "above 0.5 and at most 100"


def limits(section: type, name: str) -> str:
    (field,) = (f for f in dataclasses.fields(section) if f.name == name)
    return str(limits_of(field))


def test_settings_of_one_name_have_limits_of_their_own() -> None:
    assert limits(QloraSection, "rank") == limits(RankSection, "remove") == "at least 1"
    assert limits(Recipe, "rank") == ""  # a section, not the adapter's rank
    assert limits(MixSection, "extra") == "at least 0"
    assert limits(ReportSection, "samples") == "at least 0"
    assert limits(SweepSection, "remove") == "at least 1"


def test_another_default_keeps_limits_and_meaning() -> None:
    epochs = [next(f for f in dataclasses.fields(s) if f.name == "epochs") for s in (TrainSection, DistilSection)]
    assert [field.default for field in epochs] == [3, 4]
    assert epochs[0].metadata == epochs[1].metadata
    assert FinetuneSection().weight_decay == 0.001
    assert [f.name for f in dataclasses.fields(FinetuneSection)] == [f.name for f in dataclasses.fields(TrainSection)]


def sections(section: type) -> Iterator[type]:
    yield section
    for hint in hints(section).values():
        inner = section_in(hint)
        if inner:
            yield from sections(inner)


@pytest.mark.parametrize("section", dict.fromkeys(sections(Recipe)), ids=lambda section: section.__name__)
def test_every_setting_says_what_it_means(section: type) -> None:
    assert section.__doc__ and not section.__doc__.startswith(f"{section.__name__}(")  # what dataclass would write
    for field in dataclasses.fields(section):
        assert meaning_of(field) or section_in(hints(section)[field.name]), field.name
        assert field.default is not dataclasses.MISSING
    assert out_of_limits(section()) == []


def test_sections_stay_plain_values() -> None:
    recipe = Recipe(model="m", rank=RankSection(remove=2))
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe
    assert dataclasses.asdict(recipe)["rank"]["remove"] == 2
    assert hash(recipe) == hash(copy.deepcopy(recipe))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1  # type: ignore[misc]
