"""A report as one HTML page that opens anywhere, offline: style, script, drawings and sounds are inside it.

Its content security policy lets nothing be loaded, and no script run but the page's own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sordino.report import advice, views
from sordino.report.charts import NARROW, WIDTH, scatter
from sordino.report.heat_map import heat_map
from sordino.report.model import Report, Sample, System
from sordino.report.rows import DASH, megabytes, metric_keys, metric_label, printed, rows, score_cell

SCATTER_METRIC = "chrf"
TEMPLATE, STYLE, SCRIPT = "page.html.j2", "style.css", "script.js"


def outputs(sample: Sample, systems: Sequence[System]) -> list[tuple[list[str], str]]:
    """(labels, text) of each different hypothesis: systems that say the same share a line, in the chain's order."""
    labels_of: dict[str, list[str]] = {}
    for system in systems:
        if system.name in sample.hypotheses:
            labels_of.setdefault(sample.hypotheses[system.name].strip(), []).append(system.label)
    return [(labels, text) for text, labels in labels_of.items()]


def p_value(value: float) -> str:
    """Three decimals; the smallest that so many trials can show is no zero."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _tests(systems: Sequence[System], keys: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """(system, metric, bootstrap p, randomisation p) of every test."""
    return [
        (system.label, metric_label(key), p_value(test.bootstrap_p), p_value(test.randomisation_p))
        for system in systems
        for key, test in ((key, system.significance[key]) for key in keys if key in system.significance)
    ]


def _groups(report: Report, keys: Sequence[str]) -> list[tuple[str, int, str, list[str]]]:
    """(group, clips, metric, a score of each system in order) of every group and metric."""
    return [
        (group, clips, metric_label(key), [_group_score(system, key, group) for system in report.systems])
        for group, clips in report.groups.items()
        for key in keys
        if any(key in system.groups for system in report.systems)
    ]


def _group_score(system: System, key: str, group: str) -> str:
    score = system.groups.get(key, {}).get(group)
    return DASH if score is None else printed(key, score)


def _cleaned(systems: Sequence[System], keys: Sequence[str]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(system, what was changed, raw and cleaned score of each metric) of every system that was cleaned."""
    return [
        (
            system.label,
            ", ".join(f"{number} {rule}" for rule, number in system.cleaned_counts.items() if number) or "nothing",
            [(score_cell(key, system.scores.get(key))[0], score_cell(key, system.cleaned.get(key))[0]) for key in keys],
        )
        for system in systems
        if system.cleaned
    ]


def _lengths(report: Report, metric: str | None) -> list[tuple[str, int, list[str]]]:
    """(range of lengths, clips, a score of each system in order)."""
    return [
        (name, clips, [_by_length(system, metric, name) for system in report.systems])
        for name, clips in report.lengths.items()
        if metric
    ]


def _by_length(system: System, metric: str | None, name: str) -> str:
    score = system.lengths.get(name)
    return DASH if score is None or metric is None else printed(metric, score)


@cache
def _environment() -> Environment:
    loader = PackageLoader("sordino.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment


@cache
def _file(name: str) -> Markup:
    """A file of the page's own, which is not escaped."""
    return Markup(resources.files("sordino.report").joinpath("templates", name).read_text(encoding="utf-8"))


def render(report: Report) -> str:
    """The page as text, to be written as UTF-8. Everything from the report is escaped."""
    script = _file(SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    page = {"style": _file(STYLE), "script": script, "script_hash": f"'sha256-{digest}'"}
    return _environment().get_template(TEMPLATE).render(page | _advised(report) | _tables(report) | _drawn(report))


def _advised(report: Report) -> dict[str, Any]:
    """What stands first: the run in a sentence, what to use, and what the scores do not say."""
    metric, chosen = advice.main_metric(report.systems), advice.recommended(report.systems)
    floor = advice.at_floor(report.systems)
    return {
        "report": report,
        "chosen": chosen,
        "main_label": metric_label(metric) if metric else "",
        "summary": advice.summary(report),
        "notes": [*advice.cautions(report), *report.notes],
        "commands": advice.commands(chosen, report) if chosen and not floor else [],
        "next_steps": advice.next_steps(report),
        "clips": views.clip_rows(report, chosen, metric),
    }


def _tables(report: Report) -> dict[str, Any]:
    systems, keys = report.systems, metric_keys(report.systems)
    signatures = {
        metric_label(key): sorted({system.scores[key].signature for system in systems if key in system.scores})
        for key in keys
    }
    return {
        "rows": rows(systems),
        "metrics": [(key, metric_label(key)) for key in keys],
        "samples": [(sample, outputs(sample, systems)) for sample in report.samples],
        "tests": _tests(systems, keys),
        "groups": _groups(report, keys),
        "lengths": _lengths(report, advice.main_metric(systems)),
        "cleaned": _cleaned(systems, keys),
        "signatures": {label: texts for label, texts in signatures.items() if texts},
        "faults": [(system.label, system.health) for system in systems if system.health and system.health.total],
        "mixture": _mixture(report),
        "splits": views.split_rows(report.splits),
        "longest": f"{max((length for split in report.splits for length in split.seconds), default=0):.1f}",
        "total_time": views.duration(sum(cost.seconds for cost in report.costs)),
    }


def _mixture(report: Report) -> dict[str, Any] | None:
    mixture = report.mixture
    if mixture is None:
        return None
    columns, cells = views.bits_table(mixture)
    size = f"{megabytes(mixture.predicted_bytes)} of at most {megabytes(mixture.budget_bytes)} MB"
    return {"columns": columns, "rows": cells, "size": size, "dropped": ", ".join(mixture.dropped)}


def _drawn(report: Report) -> dict[str, Any]:
    label, criterion = metric_label(SCATTER_METRIC), metric_label(report.criterion)
    wide, narrow = (
        scatter(report.systems, SCATTER_METRIC, label, report.frontier, report.knee, width) for width in (WIDTH, NARROW)
    )
    scopes = sorted({trial.scope for trial in report.trials})
    maps = [(scope, heat_map(report.trials, scope, criterion, report.lower_is_better)) for scope in scopes]
    part_bars = views.part_bars(report.systems)
    return {
        "scatter": {"wide": wide, "narrow": narrow} if wide else None,
        "scatter_label": label,
        "maps": maps,
        "criterion": criterion,
        "part_bars": part_bars,
        "part_legend": views.part_legend(part_bars),
        "speed_bars": views.speed_bars(report.systems),
        "cost_bars": views.cost_bars(report.costs),
        "curves": views.curves(report.trainings),
    }
