"""Sections from YAML mappings. Unknown keys are refused with the near match, types are checked.

A section is a frozen dataclass; its field types (scalars, Literal, tuples, optional and nested sections) are the rules.
Mistakes are collected, so that all are reported at once.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from sordino.config.sections import hints, is_optional, is_union, section_in
from sordino.errors import near_match
from sordino.runtime.terminal import printable, quoted
from sordino.runtime.values import Malformed, parse_yaml

SHOWN = 100  # characters of a value that a problem quotes
NOT_SETTINGS = {
    f"{stage}.engine": f"{stage} {does} with transformers alone: vLLM's texts can differ, {why}"
    for stage, does, why in (
        ("rank", "compares", "and every candidate must be decoded alike"),
        ("translate", "is timed and scored", "and its speed is not the model's"),
    )
}
GUESSED = 20  # problems, after which nothing is guessed any more


def override(cls: type, raw: dict[str, Any], text: str, problems: list[str]) -> None:
    """Put one `key=value` (dotted key, YAML value) into the mapping that a `cls` will be made of."""
    key, sep, written = text.partition("=")
    if not sep or not key:
        problems.append(f"{quoted(text)} is not key=value")
        return
    try:
        value = parse_yaml(written)
    except Malformed as error:
        problems.append(f"{printable(key, 100)}: {quoted(written, 100)} is not a YAML value ({error.problem})")
        return
    node, hint = raw, cls
    *path, last = key.split(".")
    for part in path:
        if node.get(part) is None:
            node[part] = {}
        node, hint = node[part], _hint_of(hint, part)
        if not isinstance(node, dict):
            problems.append(f"{key}: '{part}' is not a section")
            return
    # `distil=` leaves the stage out; None would ask for it with its defaults
    hint = _hint_of(hint, last)
    leaves_out = value is None and is_optional(hint) and section_in(hint) is not None
    node[last] = False if leaves_out else value


def _hint_of(hint: Any, key: str) -> Any:
    """Type of a section's setting, None where the section has no such setting."""
    inner = section_in(hint)
    return hints(inner).get(key) if inner else None


def section(cls: type, raw: Any, where: str, problems: list[str]) -> Any:
    """A frozen section from a mapping; every unknown key and wrong type is added to `problems`."""
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        problems.append(f"{where or 'the recipe'}: expected settings, found {quoted(raw, SHOWN)}")
        return cls()
    names = [f.name for f in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = printable(str(key), 100) if isinstance(key, str | int | float) else quoted(key, 100)
        spot = f"{where}.{name}" if where else name
        if key not in names:
            if spot in NOT_SETTINGS:
                problems.append(f"unknown key '{spot}' ({NOT_SETTINGS[spot]})")
                continue
            near = near_match(name[:SHOWN], names) if len(problems) < GUESSED else None
            advice = f"did you mean '{near}'?" if near else f"known: {', '.join(names)}"
            problems.append(f"unknown key '{spot}' ({advice})")
            continue
        values[key] = _value(hints(cls)[key], value, spot, problems)
    return cls(**values)


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """One value checked against its type hint."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_union(hint):
        inner = section_in(hint)
        # `export:` with nothing under it asks for the stage with its defaults; `export: false` leaves it out
        if inner:
            return None if value is False else _value(inner, value, where, problems)
        other = next(a for a in args if a is not type(None))
        return None if value is None else _value(other, value, where, problems)
    if dataclasses.is_dataclass(hint):
        return section(typing.cast(type, hint), {} if value is True else value, where, problems)
    if origin is Literal:
        if not isinstance(value, str | int | float | None) or value not in args:
            problems.append(f"{where}: {quoted(value, SHOWN)} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            value = [] if value is None else [value]
        return tuple(_value(args[0], item, where, problems) for item in value)
    return _scalar(hint, value, where, problems)


def _scalar(hint: type, value: Any, where: str, problems: list[str]) -> Any:
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # `layers: [12, 13]`
    if hint is float and isinstance(value, str):
        try:
            return float(value)  # YAML reads 1e-5 as a string
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and "\0" in value:
        problems.append(f"{where}: {quoted(value, 100)} holds NUL, which no text and no path has")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        problems.append(f"{where}: expected {hint.__name__}, found {quoted(value, SHOWN)}")
    elif isinstance(value, str) and "\0" in value:
        problems.append(f"{where}: {quoted(value, SHOWN)} holds NUL, which no path and no text has")
    return value
