"""The systems as a terminal table. It is returned, not printed: the command line owns the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from sordino.report.model import System
from sordino.report.rows import metric_keys, metric_label, rows


def table(systems: Sequence[System], title: str = "") -> Table:
    """system, layers, MB, % of teacher, the metrics, retention (chrF %), RTF; one row per system in order."""
    keys = metric_keys(systems)
    view = Table(title=Text(title) if title else None)
    view.add_column("system", no_wrap=True)
    headers = ["layers", "MB", "% of teacher", *map(metric_label, keys), "retention %", "RTF"]
    for header in headers:
        view.add_column(header, justify="right")
    for row in rows(systems):
        scores = [row.scores[key][0] for key in keys]
        cells = [row.label, row.layers, row.megabytes, row.ratio, *scores, row.retention, row.rtf]
        view.add_row(*map(Text, cells))  # Text: a label with [brackets] is no markup
    return view
