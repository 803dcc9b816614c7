"""JSON and YAML text to plain values that later code can work with; anything else is Malformed, in one clause.

Refused are syntax errors, nesting beyond MOST_DEPTH, numbers that no type holds, half surrogate pairs, keys that stand
in a YAML mapping twice, and YAML whose aliases stand for more than MOST_VALUES values ("billion laughs"). Files of
these: foreign.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import yaml

from sordino.runtime.terminal import printable, quoted

MOST_DEPTH = 100
MOST_YAML = 2**18  # characters; PyYAML reads some 40,000 a second
MOST_VALUES = 100_000  # of a YAML document, aliases written out
MOST_BITS = 1023  # of an integer: beyond that no float holds it
KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


class Malformed(ValueError):
    """What is wrong with a text, in words that name no file. line: where, from 1, if that is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


def kind_of(value: Any) -> str:
    """What a JSON or YAML value is, in words."""
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


def parse_json(text: str, *, finite: bool = True) -> Any:
    """A JSON value. Raises Malformed."""

    def constant(name: str) -> float:
        if finite:
            raise Malformed(f"not JSON: {name} is no number")
        return float(name)

    try:
        value = json.loads(text, parse_constant=constant, parse_float=_float)
    except json.JSONDecodeError as error:
        line = error.lineno if "\n" in text.strip() else None
        raise Malformed(f"not JSON: {error.msg[:1].lower()}{error.msg[1:]} (column {error.colno})", line) from None
    except RecursionError:
        raise Malformed("not JSON to work with: it is nested too deeply") from None
    except Malformed:
        raise
    except ValueError:  # an integer of more digits than Python reads
        raise Malformed("not JSON to work with: a number of thousands of digits") from None
    _check(value, strings="\\u" in text)
    return value


def parse_yaml(text: str) -> Any:
    """A YAML value of plain types. Raises Malformed."""
    if len(text) > MOST_YAML:
        raise Malformed(f"not YAML to work with: {len(text):,} characters are more than {MOST_YAML:,}")
    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node)
        value = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _yaml_problem(error) from None
    except RecursionError:
        raise Malformed("not YAML to work with: it is nested too deeply") from None
    except Malformed:
        raise
    # `2024-99-99`, `!!bool abc`, `0x_`, thousands of digits: the types' own errors, all of one meaning
    except (ValueError, KeyError, AttributeError, TypeError, IndexError, OverflowError) as error:
        raise Malformed(f"a value is not of the type that it looks like ({printable(str(error), 100)})") from None
    finally:
        loader.dispose()
    _check(value, strings=True)
    return value


def _yaml_problem(error: yaml.YAMLError) -> Malformed:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    return Malformed(f"not YAML: {problem}", mark.line + 1 if mark else None)


def _count(node: yaml.Node) -> int:
    """Values that a document stands for with its aliases written out. Raises Malformed for more than MOST_VALUES."""
    sizes: dict[int, tuple[int, int]] = {}  # of a node that is done: values, depth

    def measure(node: yaml.Node, above: int) -> tuple[int, int]:
        if above > MOST_DEPTH:
            raise Malformed("not YAML to work with: it is nested too deeply", node.start_mark.line + 1)
        if id(node) in sizes:
            if sizes[id(node)] == (0, 0):
                raise Malformed("not YAML to work with: an alias stands inside of what it names", _line(node))
            return sizes[id(node)]
        sizes[id(node)] = 0, 0
        values, depth = 1, 1
        for child in _children(node):
            more, below = measure(child, above + 1)
            values, depth = values + more, max(depth, below + 1)
        if values > MOST_VALUES or above + depth > MOST_DEPTH:
            raise Malformed(f"not YAML to work with: its aliases stand for over {values:,} values", _line(node))
        sizes[id(node)] = values, depth
        return values, depth

    return measure(node, 0)[0]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        keys: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in keys:
                    raise Malformed(f"the key {quoted(key.value, 100)} stands there twice", _line(key))
                keys.add((key.tag, key.value))
            yield key
            yield value


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Malformed(f"not JSON to work with: {printable(text, 40)} is beyond every number")
    return value


def _check(value: Any, *, strings: bool) -> None:
    """Raise Malformed for nesting, numbers and strings that later code would stumble over."""
    rest = [(value, 0)]
    while rest:
        item, depth = rest.pop()
        if isinstance(item, dict | list):
            if depth >= MOST_DEPTH:
                raise Malformed("it is nested too deeply")
            inside = [*item, *item.values()] if isinstance(item, dict) else item
            rest += [(each, depth + 1) for each in inside]
        elif isinstance(item, int) and item.bit_length() > MOST_BITS:
            raise Malformed("a number of hundreds of digits")
        elif strings and isinstance(item, str) and not item.isascii():
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise Malformed(f"half of a surrogate pair at character {error.start} of a text") from None
