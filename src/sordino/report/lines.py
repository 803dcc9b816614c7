"""Scores of text files, and comparisons of COMET with the original, as lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sordino.report.rows import printed


def lines(result: Mapping[str, Any]) -> list[str]:
    """One line a score (name, value, interval, signature; tabs between them), then one line a comparison."""
    found = []
    for score in result.get("scores", []):
        value, *interval = (printed(score["name"], number) for number in (score["value"], *(score["interval"] or ())))
        found.append(f"{score['name']}\t{value}\t[{', '.join(interval)}]\t{score['signature']}")
    for check in result.get("checks", []):
        said = "agrees" if check["agrees"] else "DISAGREES"
        difference = f"{check['largest']:.1e} at most over {check['segments']} segments"
        found.append(f"{check['metric']} of {check['system']} {said} with the original: {difference}")
    return found
