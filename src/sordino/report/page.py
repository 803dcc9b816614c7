"""A report as one HTML page that opens anywhere: no script, no font, no file and no address beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template

from sordino.report.charts import heat_map, scatter
from sordino.report.model import Report, Sample, System
from sordino.report.rows import metric_keys, metric_label, rows

SCATTER_METRIC = "chrf"
TEMPLATE = "template.html.j2"


def outputs(sample: Sample, systems: Sequence[System]) -> list[tuple[list[str], str]]:
    """(labels, text) of each different hypothesis: systems that say the same share a line, in the chain's order."""
    said: dict[str, list[str]] = {}
    for system in systems:
        if system.name in sample.hypotheses:
            said.setdefault(sample.hypotheses[system.name].strip(), []).append(system.label)
    return [(labels, text) for text, labels in said.items()]


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
        scatter=scatter(report.systems, SCATTER_METRIC, metric_label(SCATTER_METRIC)),
        scatter_label=metric_label(SCATTER_METRIC),
        maps=[(scope, heat_map(report.trials, scope, criterion)) for scope in scopes],
        criterion=criterion,
        samples=[(sample, outputs(sample, report.systems)) for sample in report.samples],
        signatures={label: found for label, found in signatures.items() if found},
        faults=[(system.label, system.health) for system in report.systems if system.health and system.health.total],
    )
