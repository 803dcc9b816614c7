"""Peak memory of each process until a training's model is sharded: python benchmarks/sharded_loading.py

A random Qwen2-Audio of 170 M weights (340 MB of bfloat16 on disk, 680 MB in float32) is opened in float32 by so many
processes on the CPU, and sharded. `whole`: each process loads all of it first; `rows`: each reads what it keeps.
Prints, for the largest process, what was resident at the peak beyond what was before the model was opened: of its own
memory, and with the pages of mapped files, which processes share.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sordino.runtime import environment

environment.prepare()

import torch
import transformers

from sordino.models import loading, registry, saving
from sordino.runtime import world
from sordino.training import sharding
from sordino.training.objectives import Step

WAYS = {"whole": loading.load_checkpoint, "rows": loading.open_deferred}
WIDTH, LAYERS, VOCABULARY = 1024, 8, 32_000


def memory() -> tuple[int, int]:
    """Resident bytes now: this process's own, and with mapped files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024, int(fields["VmRSS"].split()[0]) * 1024


def write_model(folder: Path) -> None:
    registry.get("qwen2_audio").tiny(str(folder), LAYERS, 2, 0)
    small = loading.load_checkpoint(str(folder), device="cpu", dtype="bfloat16")
    text = small.model.config.text_config
    text.hidden_size, text.intermediate_size, text.vocab_size = WIDTH, 2816, VOCABULARY
    text.num_attention_heads = text.num_key_value_heads = WIDTH // 64
    text.head_dim = 64
    saving.save(dataclasses.replace(small, model=type(small.model)(small.model.config).bfloat16()), folder)


def work(folder: str, way: str) -> None:
    """In each process."""
    environment.quiet_libraries()
    torch.set_num_threads(1)
    here = world.join(torch.device("cpu"))
    loading.open_deferred(folder, device="cpu", dtype="float32")  # what is imported by then is no part of the model
    here.wait()
    before, peaks, over = memory(), [0, 0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peaks[:] = map(max, peaks, memory())

    watching = threading.Thread(target=watch)
    watching.start()
    speech = WAYS[way](folder, device="cpu", dtype="float32")
    step = Step(speech)
    sharding.shard(step, "float32", here)
    over.set()
    watching.join()
    kept = sum(weight.to_local().nbytes for weight in step.parameters())
    rows = [here.sum(*(value * (here.rank == rank) for value in (*peaks, kept))) for rank in range(here.size)]
    if here.first:
        own, all_, kept = (max(row[i] for row in rows) / 1e6 for i in range(3))
        own, all_ = own - before[0] / 1e6, all_ - before[1] / 1e6
        print(
            f"{here.size} processes, {way:5}: keeps {kept:,.0f} MB; at the peak {own:,.0f} MB, {all_:,.0f} with files"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    environment.quiet_libraries()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}")
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        size = sum(file.stat().st_size for file in Path(name).glob("*.safetensors"))
        print(f"{size / 1e6:,.0f} MB on disk")
        for count in options.processes:
            for way in WAYS:
                launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
                command = [sys.executable, *launcher, __file__, "--worker", name, way]
                subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
