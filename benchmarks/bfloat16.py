"""How many of AdamW's updates bfloat16 weights lose, and what that does to a training.

    python benchmarks/bfloat16.py RUN

RUN is a finished run of the demo. Its teacher is trained on, encoder frozen, at a learning rate of 1e-5, three times
from the same weights: in float32, in bfloat16 rounded to the nearest, and rounded stochastically. An update is lost
where a weight that has a gradient is after the step what it was before. Nothing is written into RUN.

    --model DIRECTORY   another model to begin with (the demo's base: demo/base)
    --steps 60 --lr 1e-5 --batch-size 16
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from sordino.config.schema import PromptSection, TrainSection
from sordino.data import manifest
from sordino.models import loading, prompts
from sordino.models.answers import answers_of
from sordino.models.features import Features
from sordino.training import optimizers, trainer
from sordino.training.collate import Example

WAYS: dict[str, tuple[torch.dtype, Literal["stochastic", "nearest"]]] = {
    "float32": (torch.float32, "nearest"),
    "bfloat16, nearest": (torch.bfloat16, "nearest"),
    "bfloat16, stochastic": (torch.bfloat16, "stochastic"),
}


class Count:
    """Updates of weights that have a gradient, and those among them that changed nothing."""

    def __init__(self) -> None:
        self.updates = self.lost = 0
        self.before: list[torch.Tensor] = []

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(self.remember)
        optimizer.register_step_post_hook(self.count)

    def weights(self, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]

    def remember(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self.before = [p.detach().clone() for p in self.weights(optimizer)]

    def count(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for weight, before in zip(self.weights(optimizer), self.before, strict=True):
            assert weight.grad is not None
            moving = weight.grad != 0
            self.updates += int(moving.sum())
            self.lost += int((moving & (weight.detach() == before)).sum())


@contextlib.contextmanager
def watched(count: Count) -> Iterator[None]:
    """Every optimizer that is made inside."""
    make = optimizers.make_optimizer

    def made(*args: Any) -> torch.optim.Optimizer:
        optimizer = make(*args)
        count.watch(optimizer)
        return optimizer

    optimizers.make_optimizer = made
    try:
        yield
    finally:
        optimizers.make_optimizer = make


def train(run: Path, model: str, options: argparse.Namespace, way: str, folder: Path) -> tuple[Count, float, float]:
    """Updates counted; loss of the dev split before and after."""
    dtype, rounding = WAYS[way]
    speech = loading.load_checkpoint(model, device="auto", dtype=dtype)
    section = TrainSection(
        batch_size=options.batch_size, lr=options.lr, scheduler="constant", max_steps=options.steps, epochs=1000,
        freeze=("encoder",), rounding=rounding,
    )  # fmt: skip
    trainer.freeze(speech, section)
    prompt = prompts.render(speech, PromptSection(), "en", "de")
    features = Features(speech, folder)

    def examples(split: str, count: int) -> list[Example]:
        clips = manifest.read(run / "10-data" / f"{split}.jsonl")[:count]
        rows = zip(clips, answers_of(speech, clips, "chat"), features.encode_all(clips, prompt), strict=True)
        return [Example(clip, answer, encoded) for clip, answer, encoded in rows]

    pairs, dev = examples("train", options.steps * options.batch_size), examples("dev", 64)
    count, before = Count(), trainer.mean_loss(speech, dev, 16, prompt)
    with watched(count), tempfile.TemporaryDirectory() as state:
        trainer.train(speech, pairs, section, prompt=prompt, seed=0, state=Path(state), label=way)
    return count, before, trainer.mean_loss(speech, dev, 16, prompt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, lr {options.lr:g}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            count, before, after = train(
                options.run, options.model or str(options.run / "20-teacher"), options, way, Path(folder)
            )
            share = count.lost / count.updates
            print(f"{way:22} lost {share:7.2%} of {count.updates:,} updates; dev loss {before:.4f} -> {after:.4f}")


if __name__ == "__main__":
    main()
