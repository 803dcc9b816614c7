"""What was done to a model, in sentences and as a recipe, from its lineage alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from sordino.config.schema import RankSection, Recipe
from sordino.config.sections import hints, stage_sections
from sordino.pipeline.lineage import Data, Lineage
from sordino.runtime import files

HUB = "hub:"  # before the revision, where a base model's hash would stand
ABSOLUTE = re.compile(r"(?:(?<=^)|(?<=:))[~.]{0,2}/(?:[^/\s]+/)*")
Stage = Mapping[str, Any]


def base_name(path: str, digest: str) -> str:
    """A base model as others may read it: its Hub id, or its directory's own name."""
    return path if digest.startswith(HUB) else Path(path).name


def bases(history: Lineage) -> list[str]:
    """A sentence for each base model."""
    return [f"Base model: {base_name(path, digest)} ({digest})." for path, digest in history.bases]


def sentences(history: Lineage, form: str) -> list[str]:
    """One for each stage that changed the model, in order. form: how the model is stored, e.g. nf4."""
    told = (SENTENCES.get(stage["stage"], _other)(stage, form) for stage in history.stages)
    return [sentence for sentence in told if sentence]


def corpus(data: Data) -> str:
    """A corpus, its parts and its hours."""
    hours = ", ".join(f"{split} {count:g} h" for split, count in data.hours.items())
    subsets = f", parts {', '.join(data.subsets)}" if data.subsets else ""
    return f"{data.name} ({Path(data.path).name}{subsets}); prepared in all: {hours or 'not recorded'}"


def recipe(history: Lineage) -> str:
    """The recipe that made the model, in YAML, without what is a default; directories by their own names alone."""
    shared: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    for stage in history.stages:
        key, section = stage_sections()[stage["stage"]]
        own = {name: value for name, value in stage["section"].items() if name in hints(section)}
        sections[key] = _changed(own, section())
        shared |= {name: value for name, value in stage["section"].items() if name not in own}
    base = {"model": base_name(*history.bases[0])} if history.bases else {}
    languages = {name: shared[name] for name in ("source", "target") if name in shared}
    others = {name: value for name, value in shared.items() if name in hints(Recipe)}
    text: str = yaml.safe_dump(
        base | languages | _changed(others, Recipe()) | sections, sort_keys=False, allow_unicode=True, width=110
    )
    return text


def _changed(values: Mapping[str, Any], section: Any) -> dict[str, Any]:
    """What a section says beside its defaults; of paths the last part, since a card is for others."""
    defaults = files.plain(asdict(section))
    changed: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if value == default:
            continue
        if isinstance(value, dict) and isinstance(default, dict):
            changed[key] = {name: _public(name, v) for name, v in value.items() if v != default.get(name)}
        elif isinstance(value, dict):
            changed[key] = {name: _public(name, v) for name, v in value.items() if v not in (None, [])}
        else:
            changed[key] = _public(key, value)
    return changed


def _public(key: str, value: Any) -> Any:
    """Without the directories of the machine that it was made on: 'comet:/home/me/xcomet' -> 'comet:xcomet'."""
    if not isinstance(value, str):
        return value
    return Path(value).name if key == "path" else ABSOLUTE.sub("", value)


def _finetune(stage: Stage, _: str) -> str:
    frozen = ", ".join(stage["section"].get("freeze") or ())
    return f"Fine-tuning of all weights{f' but {frozen}' if frozen else ''} ({stage.get('steps', '?')} steps)."


def _rank(stage: Stage, _: str) -> str:
    section = stage["section"]
    if section["method"] != "iterative":
        return f"Layers to remove: {'chosen by hand' if section['method'] == 'explicit' else 'those in the middle'}."
    ranking = RankSection(criterion=section["criterion"], targets=tuple(section.get("targets") or ()))
    criterion = Recipe(target=section["target"], rank=ranking).criterion
    return f"Layers ranked by iterative removal, criterion {criterion}, {section['search']} search."


def _prune(stage: Stage, _: str) -> str:
    removed = stage.get("removed") or []
    return f"Layer pruning: {len(removed)} layers removed ({', '.join(removed)})."


def _pseudolabel(stage: Stage, _: str) -> str:
    section, clips = stage["section"], stage.get("clips", "the")
    mbr = section.get("method") == "mbr"
    how = f", each the one of {section['samples']} samples that the others agree with (MBR)" if mbr else ""
    return f"Sequence-level knowledge distillation: the teacher translates {clips} training clips{how}."


def _distil(stage: Stage, _: str) -> str:
    mix = stage["section"].get("mix") or {}
    kinds = [name for name in ("authentic", "pseudo") if mix.get(name)]
    return f"The pruned student is trained ({stage.get('steps', '?')} steps) on {' and '.join(kinds)} translations."


def _qlora(stage: Stage, _: str) -> str:
    section = stage["section"]
    return (
        f"QLoRA: rank {section['rank']}, alpha {section['alpha']}, on the model in {section['quantize']} "
        f"({section['scope']}; {stage.get('steps', '?')} steps)."
    )


def _trim(stage: Stage, _: str) -> str:
    rows = stage.get("rows") or {}
    return f"Vocabulary trimmed from {rows.get('before', '?')} to {rows.get('after', '?')} rows."


def _qat(stage: Stage, _: str) -> str:
    matched = " after its encoder was healed by matching states" if stage["section"].get("match") else ""
    return (
        f"Quantization-aware training through the rounding of {stage['section']['format']}{matched} "
        f"({stage.get('steps', '?')} steps)."
    )


def _export(_: Stage, form: str) -> str:
    return f"Stored as {form}."


def _nothing(_: Stage, __: str) -> str:
    return ""


def _other(stage: Stage, _: str) -> str:
    """A stage that has no sentence here is still said."""
    settings = ", ".join(f"{k} {v}" for k, v in stage["section"].items() if isinstance(v, (str, int, float)))
    return f"{stage['stage']} ({settings})."


SENTENCES: dict[str, Callable[[Stage, str], str]] = {
    "prepare": _nothing,
    "finetune": _finetune,
    "rank": _rank,
    "prune": _prune,
    "pseudolabel": _pseudolabel,
    "distil": _distil,
    "qlora": _qlora,
    "merge": lambda *_: "The adapter is merged into the 16-bit model.",
    "trim": _trim,
    "qat": _qat,
    "export": _export,
}
