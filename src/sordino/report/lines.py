"""Scores of text files, comparisons of COMET with the original, and what a sweep or a budget came to, as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sordino.report.rows import megabytes, metric_label, printed


def lines(result: Mapping[str, Any]) -> list[str]:
    """One line a score (name, value, interval, signature; tabs between them), then one line a comparison."""
    rows = []
    for score in result.get("scores", []):
        value, *interval = (printed(score["name"], number) for number in (score["value"], *(score["interval"] or ())))
        rows.append(f"{score['name']}\t{value}\t[{', '.join(interval)}]\t{score['signature']}")
    for check in result.get("checks", []):
        verdict = "agrees" if check["agrees"] else "DISAGREES"
        difference = f"{check['largest']:.1e} at most over {check['segments']} segments"
        rows.append(f"{check['metric']} of {check['system']} {verdict} with the original: {difference}")
    return rows


def bits_line(bits: Mapping[str, int]) -> str:
    """Bits by part: '2 bits decoder.1.mlp; 3 bits encoder.0 encoder.4; ...'."""
    widths = sorted(set(bits.values()))
    return "; ".join(f"{width} bits {' '.join(part for part in bits if bits[part] == width)}" for width in widths)


def sweep_lines(result: Mapping[str, Any]) -> list[str]:
    """The frontier from small to large, its knee with the settings that make it, and what was left out."""
    points = {point["system"]: point for point in result["points"]}
    metric = result["metric"]

    def line(name: str) -> str:
        point = points[name]
        share = f", {100 * point['ratio']:.1f} % of the teacher's bytes" if point["ratio"] else ""
        retention = f" ({point['retention']:.1f} % of its score)" if point["retention"] else ""
        score = f"{metric_label(metric)} {printed(metric, point[metric])}"
        return f"{point['label']}: {megabytes(point['bytes'])} MB{share}, {score}{retention}"

    rows = [f"frontier\t{line(name)}" for name in result["frontier"]]
    if result["knee"]:
        settings = points[result["knee"]]["settings"]
        made = f"; made by {' '.join(settings)}" if settings else ""
        rows.append(f"knee\t{line(result['knee'])}{made}")
    return rows + [f"left out\t{label}: {why}" for label, why in result["left_out"].items()]
