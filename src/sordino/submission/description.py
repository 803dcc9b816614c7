"""The description that the IWSLT model-compression track asks for, in Markdown, from what is known of the model.

Mandatory there (iwslt.org/2027/compression, step 1.4): exact storage size, number of parameters, techniques, datasets.
Sizes are read from the files; techniques and data come from the stage.json files of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.measure.audit import audit
from sordino.models.registry import is_hub_id
from sordino.pipeline.lineage import Data, Lineage

GIB = 2**30
Stage = Mapping[str, Any]


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
    named = [(path if is_hub_id(path) else Path(path).name, digest) for path, digest in what.lineage.bases]
    lines = [f"Base model: {name} ({digest})." for name, digest in named] + [""]
    number = 0
    for stage in what.lineage.stages:
        sentence = SENTENCES.get(stage["stage"], _other)(stage, what.model)
        if sentence:
            number += 1
            lines.append(f"{number}. {sentence}")
    return lines


def _data(what: Described) -> list[str]:
    lines = []
    if what.datasets:
        lines += [f"As stated by the submitters: {what.datasets}"]
    if what.lineage is not None:
        lines += [*([""] if lines else []), *(_corpus(data) for data in what.lineage.data)]
        lines += ["", "From the run's own records; the base model's data is its makers'."]
    return lines


def _corpus(data: Data) -> str:
    hours = ", ".join(f"{split} {count:g} h" for split, count in data.hours.items())
    subsets = f", parts {', '.join(data.subsets)}" if data.subsets else ""
    return f"- {data.name} ({Path(data.path).name}{subsets}); prepared in all: {hours or 'not recorded'}"


def _count(count: int | None) -> str:
    return "not known" if count is None else f"{count:,}"


def _gib(count: int | None) -> str:
    return "not known" if count is None else f"{count / GIB:.4f}"


def _finetune(stage: Stage, _: Path) -> str:
    frozen = ", ".join(stage["section"].get("freeze") or ())
    return f"Fine-tuning of all weights{f' but {frozen}' if frozen else ''} ({stage.get('steps', '?')} steps)."


def _rank(stage: Stage, _: Path) -> str:
    section = stage["section"]
    return (
        f"Layers ranked by {section['method']} removal, criterion {section['criterion']}, {section['search']} search."
    )


def _prune(stage: Stage, _: Path) -> str:
    removed = stage.get("removed") or []
    return f"Layer pruning: {len(removed)} layers removed ({', '.join(removed)})."


def _pseudolabel(stage: Stage, _: Path) -> str:
    return f"Sequence-level knowledge distillation: the teacher translates {stage.get('clips', 'the')} training clips."


def _distil(stage: Stage, _: Path) -> str:
    mix = stage["section"].get("mix") or {}
    kinds = [name for name in ("authentic", "pseudo") if mix.get(name)]
    return f"The pruned student is trained ({stage.get('steps', '?')} steps) on {' and '.join(kinds)} translations."


def _qlora(stage: Stage, _: Path) -> str:
    section = stage["section"]
    return (
        f"QLoRA: rank {section['rank']}, alpha {section['alpha']}, on the model in {section['quantize']} "
        f"({section['scope']})."
    )


def _export(stage: Stage, model: Path) -> str:
    return f"Stored as {model.name}."


def _nothing(_: Stage, __: Path) -> str:
    return ""


def _other(stage: Stage, _: Path) -> str:
    """A stage that has no sentence here is still said."""
    settings = ", ".join(f"{k} {v}" for k, v in stage["section"].items() if isinstance(v, (str, int, float)))
    return f"{stage['stage']} ({settings})."


SENTENCES: dict[str, Callable[[Stage, Path], str]] = {
    "prepare": _nothing,
    "finetune": _finetune,
    "rank": _rank,
    "prune": _prune,
    "pseudolabel": _pseudolabel,
    "distil": _distil,
    "qlora": _qlora,
    "merge": lambda *_: "The adapter is merged into the 16-bit model.",
    "export": _export,
}
