"""A report as one HTML page that opens anywhere: no script, no font, no file and no address beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template

from sordino.report.charts import heat_map, scatter
from sordino.report.model import Report, Sample, System
from sordino.report.rows import DASH, metric_keys, metric_label, printed, rows, score_cell

SCATTER_METRIC = "chrf"
TEMPLATE = "template.html.j2"


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


@cache
def _template() -> Template:
    source = resources.files("sordino.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def render(report: Report) -> str:
    """The page as text, to be written as UTF-8. Everything from the report is escaped."""
    keys = metric_keys(report.systems)
    criterion = metric_label(report.criterion)
    scopes = sorted({trial.scope for trial in report.trials})
    signatures = {
        metric_label(key): sorted({system.scores[key].signature for system in report.systems if key in system.scores})
        for key in keys
    }
    return _template().render(
        report=report,
        rows=rows(report.systems),
        metrics=[(key, metric_label(key)) for key in keys],
        scatter=scatter(report.systems, SCATTER_METRIC, metric_label(SCATTER_METRIC), report.frontier, report.knee),
        scatter_label=metric_label(SCATTER_METRIC),
        maps=[(scope, heat_map(report.trials, scope, criterion, report.lower_is_better)) for scope in scopes],
        criterion=criterion,
        samples=[(sample, outputs(sample, report.systems)) for sample in report.samples],
        tests=_tests(report.systems, keys),
        groups=_groups(report, keys),
        cleaned=_cleaned(report.systems, keys),
        signatures={label: texts for label, texts in signatures.items() if texts},
        faults=[(system.label, system.health) for system in report.systems if system.health and system.health.total],
    )
