"""A system's row in words, for the page and for the terminal alike, so that both print the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sordino.errors import RecipeError
from sordino.metrics import registry
from sordino.metrics.base import Score
from sordino.metrics.paired import Paired
from sordino.report.model import TEACHER, System

MEGABYTE = 10**6  # bytes, as disks and model hubs count
DASH = "–"
FIRST_METRICS = ("bleu", "chrf", "chrf++")  # always shown; others follow where a system has them
RETENTION_METRIC = "chrf"
MARK = "†"


@dataclass(frozen=True)
class Row:
    """Formatted cells; DASH where a value was not measured. scores: (value, interval or '') by metric key; a MARK
    behind the value says that it differs from the teacher's by both paired tests.

    ratio: weights as per cent of the teacher's; retention: chrF as per cent of the teacher's.
    """

    name: str
    label: str
    layers: str
    parameters: str
    elements: str
    megabytes: str
    ratio: str
    scores: dict[str, tuple[str, str]]
    retention: str
    rtf: str
    tokens_per_second: str
    memory: str
    faults: str
    fault_kinds: str


def metric_keys(systems: Sequence[System]) -> list[str]:
    """Metric columns: the three overlap metrics, then any other that a system was scored with."""
    others = {key for system in systems for key in system.scores} - set(FIRST_METRICS)
    return [*FIRST_METRICS, *sorted(others)]


def metric_label(key: str) -> str:
    """'chrf++' -> 'chrF++'; a metric that the registry does not know keeps its key."""
    try:
        return registry.get(key).label
    except RecipeError:
        return key


def printed(key: str, value: float) -> str:
    """A score with the digits its metric deserves."""
    try:
        return f"{value:.{registry.get(key).decimals}f}"
    except RecipeError:
        return f"{value:.2f}"


def rows(systems: Sequence[System]) -> list[Row]:
    """One row per system, in the order given; weights as per cent of the system named 'teacher'."""
    teacher = next((system.size.weights_bytes for system in systems if system.name == TEACHER and system.size), None)
    keys = metric_keys(systems)
    return [_row(system, keys, teacher) for system in systems]


def megabytes(size_bytes: int) -> str:
    """10^6 bytes, with as many digits as they deserve: 0.42, 7.5, 123, 8,649."""
    value = size_bytes / MEGABYTE
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def count(number: int) -> str:
    """Parameters and elements: 8.397 B, 503.0 k, 64."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3f} {name}" if name == "B" else f"{number / unit:.1f} {name}"
    return str(number)


def rate(value: float) -> str:
    """Real-time factors and tokens per second: three significant digits, never an exponent."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _row(system: System, keys: Sequence[str], teacher_bytes: int | None) -> Row:
    size, speed, health = system.size, system.speed, system.health
    retention = system.retention.get(RETENTION_METRIC)
    kinds = {rule: number for rule, number in health.counts.items() if number} if health else {}
    return Row(
        name=system.name,
        label=system.label,
        layers=DASH if system.decoder_layers is None else str(system.decoder_layers),
        parameters=count(size.logical_parameters) if size and size.logical_parameters is not None else DASH,
        elements=count(size.stored_elements) if size else DASH,
        megabytes=megabytes(size.weights_bytes) if size else DASH,
        ratio=f"{100 * size.weights_bytes / teacher_bytes:.1f}" if size and teacher_bytes else DASH,
        scores={key: score_cell(key, system.scores.get(key), system.significance.get(key)) for key in keys},
        retention=DASH if retention is None else f"{retention:.1f}",
        rtf=rate(speed.rtf) if speed else DASH,
        tokens_per_second=rate(speed.tokens_per_second) if speed and speed.tokens else DASH,
        memory=megabytes(speed.peak_memory_bytes) if speed else DASH,
        faults=str(health.total) if health else DASH,
        fault_kinds=", ".join(f"{number} {rule}" for rule, number in kinds.items()),
    )


def score_cell(key: str, score: Score | None, tested: Paired | None = None) -> tuple[str, str]:
    """(value, interval or '') as printed; the interval with one digit less."""
    if score is None:
        return DASH, ""
    mark = MARK if tested and tested.significant else ""
    if not score.interval:
        return printed(key, score.value) + mark, ""
    digits = len(printed(key, 0.0)) - 3
    low, high = (f"{bound:.{digits}f}" for bound in score.interval)
    return printed(key, score.value) + mark, f"{low}–{high}"
