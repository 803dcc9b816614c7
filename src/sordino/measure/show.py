"""The tables that `sordino inspect` prints, through rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sordino.layouts import tables
from sordino.measure.audit import Audit, Share, part_with_layer, shares
from sordino.measure.torch_save import STORAGES, torch_save_bytes
from sordino.models import shapes
from sordino.runtime.terminal import markup

GIB = 2**30
MODEL_STAGES = (
    "finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge", "trim", "qat", "export", "translate",
)  # fmt: skip


def gigabytes(count: int | None) -> str:
    """'16.794 GB' from a thousandth of a GB, else MB or kB."""
    if count is None:
        return "unknown"
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size / 10:
            return f"{count / size:,.3f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def spent(seconds: float | None) -> str:
    """'42 s', '2.2 min', '1.5 h'."""
    if seconds is None:
        return "unknown"
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def audit_tables(model: Audit) -> RenderableType:
    """Everything that `inspect` says about a checkpoint."""
    head = Table("", "count", "GB", "GiB", title=markup(model.path, None), title_justify="left")
    rows = (("bytes on disk, weights", model.weights_bytes), ("bytes on disk, all files", model.directory_bytes))
    digits = 3 if model.weights_bytes >= 1e8 else 6
    for name, count in (*rows, ("torch.save(state_dict)", model.torch_save_bytes)):
        sizes = (
            ("unknown", "", "")
            if count is None
            else (f"{count:,}", f"{count / 1e9:.{digits}f}", f"{count / GIB:.{digits}f}")
        )
        head.add_row(name, *sizes)
    head.add_row("logical parameters", _count(model.parameters), "", "")
    head.add_row("stored elements", _count(model.stored_elements), "", "")
    _right(head)
    parts: list[RenderableType] = [head, _shares("part", _runs(model.parts)), _shares("stored as", model.storage)]
    if not model.findings:
        return Group(*parts, Text("no inefficiencies that headers and names could tell", style="green"))
    inefficient = Table("inefficiency", "bytes", "what", "what to do", title_justify="left")
    for finding in model.findings:
        inefficient.add_row(
            finding.kind, gigabytes(finding.bytes), markup(finding.what, None), markup(finding.fix, None)
        )
    return Group(*parts, inefficient)


def config_tables(model: shapes.Model, title: str) -> RenderableType:
    """What a model of these shapes would weigh in each layout."""
    parts = Table("part", "tensors", "parameters", "16-bit", title=markup(title, None), title_justify="left")
    for name, share in _runs(config_parts(model)).items():
        parts.add_row(name, f"{share.tensors}", _count(share.parameters), gigabytes(share.bytes))
    parts.add_row("all", f"{len(model.tensors)}", _count(model.parameters), gigabytes(2 * model.parameters))
    table = Table("layout", "on disk", "torch.save", "", "stored elements", "what")
    for name, row in layout_rows(model).items():
        disk, saved = row["bytes"], row["torch_save_bytes"]
        sizes = gigabytes(disk), gigabytes(saved), "" if saved is None else f"{saved / GIB:.3f} GiB"
        table.add_row(name, *sizes, _count(row["stored_elements"]), tables.TITLES[name])
    _right(parts)
    _right(table, last=4)
    return Group(parts, table)


def run_table(rows: Sequence[Mapping[str, Any]], title: str) -> RenderableType:
    """`sordino inspect RUN`: rows as its --json has them."""
    table = Table("model", "weights", "chrF", "path", title=Text(title), title_justify="left")
    for row in rows:
        score = "" if row["chrf"] is None else f"{row['chrf']:.1f}"
        table.add_row(row["label"], gigabytes(row["weights_bytes"]), score, Text(row["path"]))
    for column in table.columns[1:3]:
        column.justify = "right"
    return Group(table, Text("`sordino inspect PATH` shows what one of them consists of"))


def plan_table(lines: Sequence[Mapping[str, Any]], title: str, unknown: str | None) -> RenderableType:
    """`sordino plan`: lines as its --json has them. unknown: the model whose config is not at hand."""
    table = Table("stage", "directory", "state", "on disk", "took", "writes", "peak memory", "memory to use it")
    table.title, table.title_justify = markup(title, None), "left"
    for line in lines:
        state = f"runs: {line['why']}" if line["runs"] else "done"
        state += "".join(f"; {name} not installed" for name in line.get("not_installed", ()))
        seconds = line["about"] if line["runs"] else line["seconds"]
        took = "" if seconds is None else f"{'~' if line['runs'] else ''}{spent(seconds)}"
        there = gigabytes(line["bytes"]) if line["bytes"] else ""
        ahead = line["forecast"]
        guesses = [f"~{gigabytes(ahead[k])}" if ahead and ahead[k] else "" for k in ("size", "memory", "use")]
        if unknown is not None and line["stage"] in MODEL_STAGES:
            guesses = ["unknown"] * 3
        table.add_row(line["stage"], markup(line["directory"], None), markup(state, None), there, took, *guesses)
    for column in table.columns[3:]:
        column.justify = "right"
    note = "~: times from what the stage took before, here or in another run; sizes predicted for the longest clip "
    note += "(--formulas says how)"
    if unknown is not None:
        note = f"sizes are unknown without the config.json of {unknown}: fetch it (hf download {unknown} config.json)"
        note += " or give one with --config FILE"
    return Group(table, Text(note), Text(_total(lines)))


def devices_table(lines: Sequence[Mapping[str, Any]]) -> RenderableType | None:
    """What each device of several takes for a training: lines of a plan as its --json has them; None without any."""
    parts = ("weights", "gradients", "moments", "gathered", "activations", "peak")
    table = Table("training", "devices", *parts, "hours", title="each device takes", title_justify="left")
    for line in lines:
        for count, on_each in ((line["forecast"] or {}).get("devices") or {}).items():
            sizes = [f"~{gigabytes(on_each[part])}" if on_each[part] else "" for part in parts]
            hours = "" if on_each["hours"] is None else f"~{on_each['hours']:.2g}"
            table.add_row(line["stage"], str(count), *sizes, hours)
    _right(table)
    return table if table.rows else None


def _total(lines: Sequence[Mapping[str, Any]]) -> str:
    """Time behind and ahead, as far as it is known."""
    done = sum(line["seconds"] or 0.0 for line in lines if not line["runs"])
    ahead = [line["about"] for line in lines if line["runs"]]
    unknown = sum(seconds is None for seconds in ahead)
    parts = [f"done: {spent(done)}"] if len(ahead) < len(lines) else []
    if len(ahead) > unknown:
        parts.append(f"to run: ~{spent(sum(seconds or 0.0 for seconds in ahead))}")
    if unknown:
        parts.append(f"{unknown} stage{'s' * (unknown > 1)} for which nothing comparable was measured")
    return "; ".join(parts)


def config_json(model: shapes.Model) -> dict[str, Any]:
    """What --json prints of a model's shapes."""
    return {
        "parameters": model.parameters,
        "dims": dict(model.dims),
        "parts": {name: asdict(share) for name, share in config_parts(model).items()},
        "layouts": layout_rows(model),
    }


def config_parts(model: shapes.Model) -> dict[str, Share]:
    """The parts of a model by its shapes, in 16 bits."""
    stored = tables.stored(model.tensors, "bf16")
    return shares(stored, {}, {name: part_with_layer(name) for name in stored})


def layout_rows(model: shapes.Model, rank: int = 64) -> dict[str, dict[str, int | None]]:
    """Layout -> bytes of its files, bytes torch.save would give, stored elements. rank: of an adapter beside.

    GGUF only where llama.cpp has the decoder.
    """
    rows: dict[str, dict[str, int | None]] = {}
    for name in tables.TITLES if model.family.tensors.gguf else tables.LAYOUTS:
        stored = tables.stored(model.tensors, name)
        size = tables.disk_bytes(stored)
        if name in tables.LAYOUTS and tables.LAYOUTS[name].adapter:
            adapter = tables.stored(shapes.lora(model, rank), "float32")
            size += tables.safetensors_bytes(adapter)
            stored |= adapter
        saveable = all(tensor.dtype in STORAGES for tensor in stored.values())
        saved = torch_save_bytes(stored, module=True) if saveable else None
        rows[name] = {"bytes": size, "torch_save_bytes": saved, "stored_elements": tables.stored_elements(stored)}
    return rows


def _runs(parts: Mapping[str, Share]) -> dict[str, Share]:
    """Parts with equal neighbouring decoder layers put together: 'decoder.0-31, each'."""
    joined: dict[str, Share] = {}
    runs: list[tuple[list[str], Share]] = []
    for name, share in parts.items():
        if (
            runs
            and name.startswith("decoder.")
            and runs[-1][0][0].startswith("decoder.")
            and _alike(runs[-1][1], share)
        ):
            runs[-1][0].append(name)
        else:
            runs.append(([name], share))
    for names, share in runs:
        last = names[-1].removeprefix("decoder.")
        joined[names[0] if len(names) == 1 else f"{names[0]}-{last}, each of {len(names)}"] = share
    return joined


def _alike(one: Share, other: Share) -> bool:
    """Equal but for a few bytes of JSON that 4-bit weights carry."""
    same = (one.tensors, one.parameters) == (other.tensors, other.parameters)
    return same and abs(one.bytes - other.bytes) <= one.bytes // 100


def _shares(title: str, rows: Mapping[str, Share]) -> Table:
    table = Table(title, "tensors", "parameters", "stored elements", "bytes", "")
    for name, share in rows.items():
        counts = f"{share.tensors}", _count(share.parameters), f"{share.elements:,}", f"{share.bytes:,}"
        table.add_row(markup(name), *counts, gigabytes(share.bytes))
    _right(table)
    return table


def _right(table: Table, last: int | None = None) -> None:
    for column in table.columns[1 : None if last is None else last + 1]:
        column.justify = "right"


def _count(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"
