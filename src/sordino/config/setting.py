"""How a setting is declared: default, meaning and limits stand beside its name and type.

lr: float = setting(1e-5, "peak learning rate", above=0)
"""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

Value = TypeVar("Value")
LARGEST = 10**12  # that any number may be: more overflows in what is computed with it

# attribute of Limits -> (how it reads, what a value must pass)
BOUNDS = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


@dataclass(frozen=True)
class Limits:
    """Bounds of a number, or of each number of a list; None where there is none. least and most may be reached."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def broken_by(self, value: float) -> str | None:
        """The first bound that a value does not keep, in words: 'at least 1'."""
        for name, (words, keeps) in BOUNDS.items():
            bound = getattr(self, name)
            if bound is not None and not keeps(value, bound):
                return f"{words} {bound:g}"
        return None

    def __str__(self) -> str:
        bounds = ((words, getattr(self, name)) for name, (words, _) in BOUNDS.items())
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)


def setting(
    default: Value,
    meaning: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Value:
    """A field of a section. meaning: one line, for the reference and `--help`; the rest: Limits."""
    metadata = {"meaning": meaning, "limits": Limits(least, above, most, below)}
    return dataclasses.field(default=default, metadata=metadata)


def other_default(section: type, name: str, default: Value) -> Value:
    """A setting of a base section, in a section that has another default for it."""
    fields = cast(Any, section).__dataclass_fields__
    return dataclasses.field(default=default, metadata=fields[name].metadata)


def meaning_of(field: dataclasses.Field[Any]) -> str:
    """Empty for most fields that are sections: the docstring of their class says what they are."""
    return str(field.metadata.get("meaning", ""))


def limits_of(field: dataclasses.Field[Any]) -> Limits:
    limits: Limits = field.metadata.get("limits", Limits())
    return limits


def out_of_limits(section: Any, where: str = "") -> list[str]:
    """Numbers that no stage could use, in a section and the sections in it. where: prefix of the keys."""
    problems = []
    for field in dataclasses.fields(section):
        value, key, limits = getattr(section, field.name), f"{where}{field.name}", limits_of(field)
        if dataclasses.is_dataclass(value):
            problems += out_of_limits(value, f"{key}.")
        elif isinstance(value, tuple):
            numbers = [item for item in value if isinstance(item, (int, float))]
            if any(limits.broken_by(number) for number in numbers):
                problems.append(f"{key}: each must be {limits}")
            elif any(not abs(number) <= LARGEST for number in numbers):
                problems.append(f"{key}: each must be at most {LARGEST:,}")
        elif isinstance(value, (int, float)):
            broken = limits.broken_by(value)
            if not math.isfinite(value):
                problems.append(f"{key}: {value} is not a number to compute with")
            elif broken:
                problems.append(f"{key}: must be {broken}, found {value:g}")
            elif abs(value) > LARGEST:
                problems.append(f"{key}: must be at most {LARGEST:,}, found {value:g}")
    return problems
