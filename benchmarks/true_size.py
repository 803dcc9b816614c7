"""Surgery and export at the true size of Qwen2-Audio-7B: bytes, seconds against `cp`, and resident memory.

A checkpoint of random weights in the model's true shape is written (16.8 GB), 8 of its 32 decoder layers are dropped,
and what is left goes through every export format. Each step runs in a process of its own, whose peak resident memory
is that step's alone, and begins with the files it reads out of the page cache. What a step no longer needs is deleted:
31 GB are taken at the most.

    python benchmarks/true_size.py /a/disk/with/40GB --json true_size.json
    python benchmarks/true_size.py small --like demo/base/config.json --remove 2     # the same in small

`cp` copies what is left after pruning, before the exports and again after them. Seconds include flushing to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.checkpoint.reading import Checkpoint
from sordino.errors import FamilyError, SordinoError
from sordino.formats import registry as formats
from sordino.layouts import tables
from sordino.measure.audit import audit
from sordino.models import shapes
from sordino.runtime import files
from sordino.runtime.progress import note

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).resolve()
BASE = HERE.parent.parent / "demo" / "base"  # its processor's files stand for the true ones
SPARE_BYTES = 8 * 10**9  # room for what a format needs beside its result
BLOCK_ELEMENTS = 2**23  # random numbers that all weights are cut from
LAYER = re.compile(r"^(language_model\.model\.layers\.)(\d+)(\..*)$")
QWEN2_AUDIO_7B = {
    "model_type": "qwen2_audio",
    "architectures": ["Qwen2AudioForConditionalGeneration"],
    "audio_config": {"model_type": "qwen2_audio_encoder", "d_model": 1280, "encoder_layers": 32, "num_mel_bins": 128,
                     "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "max_source_positions": 1500},
    "text_config": {"model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 156_032,
                    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5},
    "audio_token_index": 151_646,
    "dtype": "bfloat16",
}  # fmt: skip


def build(directory: Path, config: Path) -> None:
    """Random weights in the shape of a config, beside the demo's processor."""
    import torch

    from sordino.checkpoint.writing import Planned, Writer
    from sordino.models import stored
    from sordino.runtime.progress import byte_bar

    directory.mkdir()
    stored.copy_processor(BASE, directory)
    shutil.copyfile(config, directory / "config.json")
    tensors = shapes.model(json.loads(config.read_text(encoding="utf-8"))).tensors
    generator = torch.Generator().manual_seed(0)
    block = (0.02 * torch.randn(BLOCK_ELEMENTS, generator=generator)).bfloat16().repeat(2)
    planned = {tensor.name: Planned("BF16", tensor.shape) for tensor in tensors}
    with Writer(directory, planned) as out, byte_bar("writing random weights", out.bytes) as advance:
        for tensor in tensors:
            out.write(tensor.name, pieces(block, tensor.shape, generator))
            advance(2 * tensor.elements)


def pieces(block: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Iterator[torch.Tensor]:
    """A tensor in pieces, each from another place of the block."""
    import torch

    row = max(1, tables._product(shape[1:]))
    most = max(1, BLOCK_ELEMENTS // row)
    for first in range(0, shape[0], most):
        rows = min(most, shape[0] - first)
        start = int(torch.randint(BLOCK_ELEMENTS, (1,), generator=generator))
        yield block[start : start + rows * row].reshape(rows, *shape[1:])


def prune(source: Path, directory: Path, remove: int) -> None:
    """Drop `remove` layers, evenly spread, as the prune stage does."""
    from sordino.pruning.layer import Layer
    from sordino.pruning.removal import write_without

    total = shapes.model(json.loads((source / "config.json").read_text(encoding="utf-8"))).dims["decoder_layers"]
    gone = [Layer("decoder", (2 * i + 1) * total // (2 * remove)) for i in range(remove)]
    directory.mkdir()
    files.write_json(directory / "kept.json", write_without(str(source), None, gone, directory)["decoder"])


def check(source: Path, directory: Path) -> None:
    """Every tensor begins and ends as the one it was copied from, found by its name alone."""
    before, after = Checkpoint.open(source), Checkpoint.open(directory)
    kept = json.loads((directory / "kept.json").read_text())
    for name in after.tensors:
        layer = LAYER.match(name)
        origin = f"{layer[1]}{kept[int(layer[2])]}{layer[3]}" if layer else name
        assert ends(after, name) == ends(before, origin), f"{name} is not {origin}"


def ends(stored: Checkpoint, name: str) -> tuple[bytes, bytes]:
    tensor, size = stored.tensors[name], 4096
    with stored.file_of[name].open("rb") as data:
        data.seek(tensor.start)
        first = data.read(min(size, tensor.bytes))
        data.seek(tensor.start + max(0, tensor.bytes - size))
        return first, data.read(min(size, tensor.bytes))


def look(directory: Path) -> None:
    """What every step begins with, and takes in the smallest model too: libraries, headers, configs."""
    from sordino.models import stored

    stored.open_model(str(directory))


def export(name: str, source: Path, directory: Path) -> None:
    """As the export stage; `mixed` with 4 bits for every matrix and 8 for the embedding, instead of measuring.

    Raises FamilyError for a format that is calibrated on clips: random weights have none.
    """
    form = formats.get(name)
    formats.require(name)
    if getattr(form, "CALIBRATED", False):
        raise FamilyError("it is calibrated on clips, and random weights have none.")
    directory.mkdir()
    form.write(str(source), directory, *([mixture(source)] if name == "mixed" else []))


def mixture(source: Path) -> dict[str, int]:
    """Bits of each tensor: 4 for every matrix and 8 for the embedding, in place of what a run would measure."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    bits = {"linear": 4, "head": 4, "embedding": 8}
    return {tensor.name: bits[tensor.kind] for tensor in shapes.model(config).tensors if tensor.kind in bits}


def copy(source: Path, directory: Path) -> None:
    subprocess.run(["cp", "-r", source, directory], check=True)
    for file in directory.iterdir():
        with file.open("rb") as data:
            os.fsync(data.fileno())


STEPS = {"build": build, "prune": prune, "check": check, "look": look, "export": export, "cp": copy}


def forget(directory: Path) -> None:
    """Take a directory's files out of the page cache, so that every step reads them from the disk."""
    for file in directory.rglob("*"):
        if file.is_file() and hasattr(os, "posix_fadvise"):
            with file.open("rb") as data:
                os.fsync(data.fileno())
                os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(step: str, *words: str | Path | int, reads: Path | None = None) -> dict[str, Any]:
    """Run a step in a process of its own. -> its seconds and peak resident bytes, or why it refused."""
    if reads is not None:
        forget(reads)
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, HERE, "--step", step, *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    note(f"{step} {Path(words[0]).name}: {seconds:.1f} s, {rss / 1e9:.2f} GB {said.strip()}".rstrip())
    if child.returncode == 2:
        return {"refused": said.strip()}
    if child.returncode:
        raise SystemExit(f"{step} {words[0]} failed with {child.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_rss_bytes": rss}


def weight(directory: Path, model: shapes.Model, layout: str) -> dict[str, Any]:
    """Bytes of the weights, the plan's, and what is wasted of them."""
    found = audit(directory)
    planned = None
    if layout in tables.TITLES:
        planned = tables.disk_bytes(tables.stored(model.tensors, layout))
    elif layout == "mixed":
        planned = tables.safetensors_bytes(tables.mixed(model.tensors, mixture(directory), 128))
    return {"bytes": found.weights_bytes, "planned_bytes": planned, "wasted_bytes": found.wasted_bytes}


def run(room: Path, config: Path, remove: int, wanted: list[str]) -> dict[str, Any]:
    """All steps in an empty directory, which is empty again afterwards."""
    content = json.loads(config.read_text(encoding="utf-8"))
    whole = shapes.model(content)
    left = shapes.model(content, decoder_layers=whole.dims["decoder_layers"] - remove)
    need = 2 * (whole.parameters + left.parameters)
    spare = min(SPARE_BYTES, need)
    free = shutil.disk_usage(room).free
    if free < need + spare:
        raise SystemExit(f"{room} has {free / 1e9:.1f} GB free, and {(need + spare) / 1e9:.1f} GB are needed.")
    source, pruned, out = room / "model", room / "pruned", room / "out"
    steps: dict[str, Any] = {"build": measured("build", source, config)}
    steps["build"] |= weight(source, whole, "bf16")
    steps["prune"] = measured("prune", source, pruned, remove, reads=source) | weight(pruned, left, "bf16")
    measured("check", source, pruned)
    shutil.rmtree(source)

    def again() -> dict[str, Any]:
        found = measured("cp", pruned, out, reads=pruned)
        shutil.rmtree(out)
        return found

    steps["look"] = measured("look", pruned, reads=pruned) | {"bytes": 0}
    copies = [again()]
    for name in wanted:
        steps[name] = measured("export", name, pruned, out, reads=pruned)
        if "refused" not in steps[name]:
            steps[name] |= weight(out, left, name)
        shutil.rmtree(out, ignore_errors=True)
    copies.append(again())
    shutil.rmtree(pruned)
    cp = sum(each["seconds"] for each in copies) / len(copies)
    for name, step in steps.items():
        if name != "build" and "seconds" in step:
            step["times_cp"] = round(step["seconds"] / cp, 2)
    return {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "cp": copies, "steps": steps}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| step | GB | plan GB | seconds | times cp | CPU seconds | peak RSS GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, step in found["steps"].items():
        if "refused" in step:
            lines.append(f"| {name} | refused: {step['refused']} | | | | | |")
            continue
        planned = f"{step['planned_bytes'] / 1e9:.3f}" if step.get("planned_bytes") else ""
        ratio = step.get("times_cp", "")
        lines.append(
            f"| {name} | {step['bytes'] / 1e9:.3f} | {planned} | {step['seconds']} | {ratio} | {step['cpu_seconds']} "
            f"| {step['peak_rss_bytes'] / 1e9:.2f} |"
        )
    seconds = " and ".join(str(each["seconds"]) for each in found["cp"])
    return "\n".join([*lines, "", f"cp of what is left after pruning: {seconds} seconds"])


def main() -> int:
    if sys.argv[1:2] == ["--step"]:
        name, *words = sys.argv[2:]
        try:
            STEPS[name](*(int(w) if w.isdigit() else w if w in formats.FORMATS else Path(w) for w in words))  # type: ignore[operator]
        except SordinoError as error:
            print(error)
            return 2
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="to work in: empty, or not there yet")
    parser.add_argument("--remove", type=int, default=8, help="decoder layers to drop")
    parser.add_argument("--formats", nargs="+", default=list(formats.FORMATS), choices=list(formats.FORMATS))
    parser.add_argument("--like", type=Path, help="another shape: a config.json")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    if any(args.directory.iterdir()):
        parser.error(f"{args.directory} is not empty")
    try:
        config = args.directory / "config.json"
        config.write_text(args.like.read_text(encoding="utf-8") if args.like else json.dumps(QWEN2_AUDIO_7B))
        found = run(args.directory, config, args.remove, args.formats)
    finally:
        for left in args.directory.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    print(table(found))
    if args.json:
        files.write_json(args.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
