"""Ways of healing a pruned model against each other: same steps, same data, several seeds, paired differences.

    python benchmarks/healing.py RECIPE OUT --arm ce --arm kl08 distil.logits.weight=0.8 [--seeds 0 1]

An arm is a name and settings of `distil` that differ from the recipe's; `run=DIRECTORY` takes another finished run's
ranked layers and labels. Its first is the present method, which the others are compared with. Every arm and seed is
trained in OUT/NAME-SEED and translates dev and test; OUT/results.jsonl gets a line as each is finished, so that the
same command goes on where it was stopped. The recipe's own run must be finished up to pseudolabel; it is only read.

Differences are of corpus chrF, means over the seeds. Intervals are of 1,000 bootstrap resamples of the clips, the
same for all arms and seeds: they say how sure the clips are, and the differences seed by seed how sure the training is.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

from sordino.runtime import environment

environment.prepare()
environment.quiet_libraries()

import numpy as np
import torch

from sordino.config import recipe as recipes
from sordino.config import run_layout
from sordino.config.schema import Recipe
from sordino.data.clip import Clip
from sordino.metrics import registry
from sordino.metrics.overlap import Overlap, percentile_interval
from sordino.models import generation, loading, prompts
from sordino.models.features import Features
from sordino.pipeline.stage import Job
from sordino.runtime import files
from sordino.runtime.progress import note
from sordino.stages import distil

COPIED = (run_layout.DATA, run_layout.TEACHER, run_layout.RANKING, run_layout.PRUNED, run_layout.PSEUDO)
HELD_OUT = ("dev", "test")
RESAMPLES = 1000


def workplace(run: Path, cache: Path, directory: Path) -> None:
    """A run directory whose finished stages are another run's, with one cache for all."""
    directory.mkdir(parents=True, exist_ok=True)
    cache.mkdir(exist_ok=True)
    for name, target in [(name, run / name) for name in COPIED] + [(run_layout.CACHE, cache)]:
        if not (directory / name).exists():
            (directory / name).symlink_to(target.resolve())


def held_out(job: Job) -> list[Clip]:
    return [dataclasses.replace(clip, id=f"{split}/{clip.id}") for split in HELD_OUT for clip in job.clips(split)]


def run_arm(recipe: Recipe, directory: Path) -> dict[str, Any]:
    """Heal, save, translate the held-out clips with what was saved. A killed training goes on."""
    section = recipe.distil
    assert section
    out = directory / run_layout.STUDENT
    out.mkdir(exist_ok=True)
    job, start = Job(recipe, out, {}), time.perf_counter()
    distil.run(job, section)
    seconds = time.perf_counter() - start
    speech = loading.load_checkpoint(str(out), device="cpu", dtype="float32")
    prompt = prompts.render(speech, recipe.prompt, recipe.source, recipe.target)
    clips = held_out(job)
    encoded = Features(speech, job.layout.cache).encode_all(clips, prompt)
    assert recipe.translate
    options = generation.Decoding(recipe.translate.batch_size, recipe.translate.max_new_tokens)
    texts = [hypothesis.text for hypothesis in generation.translate(speech, encoded, options)]
    return job.record | {"seconds": round(seconds), "texts": texts}


def compare(rows: list[dict[str, Any]], clips: list[Clip], recipe: Recipe, arms: list[str], seeds: list[int]) -> None:
    metric = registry.get("chrf")
    assert isinstance(metric, Overlap)
    references = [clip.target_text or "" for clip in clips]
    scores: dict[tuple[str, int], tuple[float, Any]] = {}
    for row in rows:
        scores[row["arm"], row["seed"]] = metric.resampled(
            row["texts"], references, recipe.target, count=RESAMPLES, seed=0
        )
    print(f"{len(clips)} clips; chrF by seed | mean | difference by seed | mean difference, 95 % interval | dev loss")
    for arm in arms:
        mine = [seed for seed in seeds if (arm, seed) in scores and (arms[0], seed) in scores]
        if not mine:
            continue
        values = [scores[arm, seed][0] for seed in mine]
        differences = [scores[arm, seed][0] - scores[arms[0], seed][0] for seed in mine]
        resampled = np.mean([scores[arm, seed][1] - scores[arms[0], seed][1] for seed in mine], axis=0)
        low, high = percentile_interval(resampled)
        losses = [row["dev_loss"] for row in rows if row["arm"] == arm and row["seed"] in mine]
        print(
            f"{arm:12} {' '.join(f'{v:.2f}' for v in values)} | {np.mean(values):.2f} | "
            f"{' '.join(f'{d:+.2f}' for d in differences)} | {np.mean(differences):+.2f} [{low:+.2f}, {high:+.2f}] | "
            + " ".join(f"{loss:.4f}" for loss in losses)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="as `sordino run` takes it")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all arms")
    parser.add_argument("--arm", nargs="+", action="append", required=True, metavar="NAME [KEY=VALUE ...]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    base = recipes.load(options.recipe, options.set)
    results = options.out / "results.jsonl"
    clips = held_out(Job(base, options.out, {}))
    for seed in options.seeds:
        for name, *settings in options.arm:
            rows = files.read_jsonl(results)
            if any(row["arm"] == name and row["seed"] == seed for row in rows):
                continue
            run = [Path(text.removeprefix("run=")) for text in settings if text.startswith("run=")] or [base.directory]
            directory = options.out / f"{name}-{seed}"
            workplace(run[-1], options.out / run_layout.CACHE, directory)
            own = [text for text in settings if not text.startswith("run=")]
            overrides = [*options.set, *own, f"seed={seed}", f"out={options.out}", f"name={directory.name}"]
            note(f"{name}, seed {seed}")
            row = run_arm(recipes.load(options.recipe, overrides), directory)
            files.append_jsonl(results, {"arm": name, "seed": seed, "settings": settings, **row})
    compare(files.read_jsonl(results), clips, base, [name for name, *_ in options.arm], options.seeds)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores", file=sys.stderr)


if __name__ == "__main__":
    main()
