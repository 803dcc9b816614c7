"""The description that the IWSLT model-compression track asks for, in Markdown, from what is known of the model.

Mandatory there (iwslt.org/2027/compression, step 1.4): exact storage size, number of parameters, techniques, datasets.
Sizes are read from the files; techniques and data come from the stage.json files of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.measure.audit import audit
from sordino.pipeline.lineage import Lineage
from sordino.publishing import techniques

GIB = 2**30


@dataclass(frozen=True)
class Described:
    """lineage: None where it is not known; outcomes: test set -> segments, recordings, seconds, empty, folded."""

    name: str
    model: Path
    languages: str
    lineage: Lineage | None
    datasets: str | None
    outcomes: Mapping[str, Mapping[str, Any]]


def describe(what: Described) -> str:
    """The whole page. The same model and outputs give the same bytes."""
    size = audit(what.model)
    saved = size.torch_save_bytes
    rows = [
        ("torch.save(state_dict), the track's measure, of the tensors as stored", saved),
        ("weights on disk (safetensors)", size.weights_bytes),
        ("all files of the model directory", size.directory_bytes),
    ]
    lines = [f"# {what.name}", "", f"Languages: {what.languages}.", "", "## Storage", ""]
    lines += ["| what | bytes | GiB |", "|---|---|---|"]
    lines += [f"| {text} | {_count(count)} | {_gib(count)} |" for text, count in rows]
    lines += ["", "## Parameters", "", f"{_count(size.parameters)} parameters of the network, whatever their storage; "]
    lines[-1] += f"{size.stored_elements:,} stored elements."
    lines += ["", "## Compression techniques", "", *_techniques(what), "", "## Training data", "", *_data(what)]
    lines += [
        "",
        "## Outputs",
        "",
        "| test set | recordings | segments | hours | empty lines |",
        "|---|---|---|---|---|",
    ]
    for key, outcome in what.outcomes.items():
        counts = f"{outcome['recordings']} | {outcome['segments']} | {outcome['seconds'] / 3600:.2f}"
        lines.append(f"| {key} | {counts} | {len(outcome['empty'])} |")
    for key, outcome in what.outcomes.items():
        if outcome["empty"]:
            lines += ["", f"Empty lines of {key}: {', '.join(outcome['empty'])}."]
        if outcome["folded"]:
            lines += ["", f"Line breaks made spaces in {key}: {', '.join(outcome['folded'])}."]
    return "\n".join(lines) + "\n"


def _techniques(what: Described) -> list[str]:
    if what.lineage is None:
        return ["The model is of no run of sordino's: describe them here before submitting."]
    sentences = enumerate(techniques.sentences(what.lineage, what.model.name), start=1)
    return [*techniques.bases(what.lineage), "", *(f"{number}. {sentence}" for number, sentence in sentences)]


def _data(what: Described) -> list[str]:
    lines = []
    if what.datasets:
        lines += [f"As stated by the submitters: {what.datasets}"]
    if what.lineage is not None:
        lines += [*([""] if lines else []), *(f"- {techniques.corpus(data)}" for data in what.lineage.data)]
        lines += ["", "From the run's own records; the base model's data is its makers'."]
    return lines


def _count(count: int | None) -> str:
    return "not known" if count is None else f"{count:,}"


def _gib(count: int | None) -> str:
    return "not known" if count is None else f"{count / GIB:.4f}"
