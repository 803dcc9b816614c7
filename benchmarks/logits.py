"""What learning a teacher's probabilities costs: training steps with and without, by turns, as a ratio.

    python benchmarks/logits.py RUN [--vocabulary 156032] [--steps 10] [--batch-size 16] [--top 64]

RUN: a finished run up to prune; its pruned model and training clips are taken, nothing is written there. The
probabilities are random and lie on disk as the real ones do. --vocabulary: the model gets so many rows, at random:
156,032 are Qwen2-Audio's, and the demo's decoder is then all head, the worst case. Both kinds of step run on the same
batches by turns. What is printed are medians of the process's own CPU seconds: on a shared machine the clock on the
wall measures the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from sordino.runtime import environment

environment.prepare()
environment.quiet_libraries()

import torch

from sordino.config.run_layout import PRUNED, RunLayout
from sordino.data import manifest
from sordino.measure.predict import LOGITS_BYTES, position_bytes
from sordino.models import loading
from sordino.models.answers import Probabilities, answers_of
from sordino.models.features import Features
from sordino.training import teacher_rows
from sordino.training.collate import Example, collate
from sordino.training.objectives import Distillation, Step, cross_entropy
from sordino.training.teacher_rows import StoredRows


def random_rows(examples: list[Example], vocabulary: int, top: int, file: Path) -> list[Example]:
    """The same examples with probabilities of a teacher that knows the answer and little else."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.tensor([token for example in examples for token in example.answer])
    ids = torch.randint(vocabulary, (len(answers), top), generator=generator)
    ids = torch.cat([answers[:, None], ids], -1)[:, :top]
    # a token that is drawn twice would count twice
    ids = torch.stack([torch.unique(torch.cat([row, torch.arange(top)]))[:top] for row in ids])
    logs = torch.randn(len(answers), top + 1, generator=generator).log_softmax(-1)
    teacher_rows.store(Probabilities(ids.int(), logs.half()), file)
    with_rows, first = [], 0
    for example in examples:
        with_rows.append(replace(example, teacher=StoredRows(file, first, len(example.answer))))
        first += len(example.answer)
    return with_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--top", type=int, default=64)
    options = parser.parse_args()
    speech = loading.load_checkpoint(str(options.run / PRUNED), device="cpu", dtype="float32")
    layout = RunLayout(options.run)
    clips = manifest.read(layout.manifest("train"))[: options.steps * options.batch_size]
    from sordino.inference.model import Model  # for the prompt that lies beside the model

    prompt = Model(speech).prompt(clips[0].source_lang, clips[0].target_lang)
    encoded = Features(speech, layout.cache).encode_all(clips, prompt)
    if options.vocabulary:
        speech.model.resize_token_embeddings(options.vocabulary, mean_resizing=False)
    rows = int(speech.model.get_output_embeddings().weight.shape[0])
    for part in speech.family.audio.cached_parts:
        for tensor in speech.tensors_of(part).values():
            tensor.requires_grad_(False)
    answers = answers_of(speech, clips, "chat")
    examples = [Example(*pair) for pair in zip(clips, answers, encoded, strict=True)]
    optimizer = torch.optim.AdamW([p for p in speech.model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    speech.model.train()
    seconds: dict[str, list[float]] = {"cross-entropy": [], "with logits": []}
    with tempfile.TemporaryDirectory() as directory:
        compared = random_rows(examples, rows, min(options.top, rows), Path(directory) / "rows.safetensors")
        kinds = {
            "cross-entropy": (examples, cross_entropy, Step(speech)),
            "with logits": (compared, Distillation(0.8), Step(speech, LOGITS_BYTES)),
        }
        for number in range(options.steps):
            for name, (pairs, objective, step) in kinds.items():
                start = time.process_time()
                first = number * options.batch_size
                batch = collate(speech, pairs[first : first + options.batch_size], prompt)
                (step(batch, objective) / batch.tokens).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    tokens = sum(len(answer) for answer in answers) / options.steps
    ratios = [b / a for a, b in zip(*(times[1:] for times in seconds.values()), strict=True)]
    print(f"{rows:,} rows, {tokens:.0f} answer tokens a step, top {options.top}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()}; {position_bytes(options.top)} bytes a position")
    print("; ".join(f"{name} {value * 1000:.0f} ms" for name, value in medians.items()), end="; ")
    print(f"ratio of the medians {medians['with logits'] / medians['cross-entropy']:.2f}, ", end="")
    print(f"of the pairs {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
