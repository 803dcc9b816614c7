"""A training step of sordino's against transformers' Trainer: same model, clips, batches, optimizer and device.

The Trainer gets what its users write: the stock processor in a collator, which pads audio to the model's window, labels
that ignore the prompt, AdamW at a constant rate. Both see the same batches in the same order, and their losses are
compared, so that the work is the same. Every measurement is a process of its own, the two in turn; the best counts.

    python benchmarks/training.py runs/demo-en-de --steps 20
    python benchmarks/training.py runs/demo-en-de --steps 20 --freeze encoder
    python benchmarks/training.py RUN --model /true/size/grown --device cuda --precision bfloat16-mixed

Seconds are those of the steps and of the encoding before them, on one thread unless --threads says otherwise; on a CPU
CPU seconds are beside them. Memory: the allocator's peak on CUDA, else the peak resident set over the loaded model's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sordino.runtime import environment

environment.prepare()
environment.quiet_libraries()

import torch

from sordino.config import card
from sordino.config.run_layout import RunLayout
from sordino.config.schema import FinetuneSection
from sordino.data import manifest
from sordino.data.audio import load_clip
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import DataError, SordinoError
from sordino.measure.speed import peak_rss_bytes, release_memory, reset_peak_rss
from sordino.models import loading, prompts
from sordino.models.answers import IGNORED, answers_of
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.runtime import files
from sordino.runtime.progress import note
from sordino.training import trainer
from sordino.training.collate import Example

RATE, SEED = 1e-5, 0


@dataclasses.dataclass(frozen=True)
class Work:
    speech: SpeechModel
    prompt: str
    clips: list[Clip]
    order: list[int]  # of the clips, as the steps take them
    section: FinetuneSection

    @property
    def answers(self) -> list[list[int]]:
        return answers_of(self.speech, self.clips, "chat")


def work_of(args: argparse.Namespace) -> Work:
    layout = RunLayout(args.run)
    path = str(args.model or layout.root / "20-teacher")
    pool = manifest.read(layout.manifest("train"))
    section = FinetuneSection(
        batch_size=args.batch_size, max_steps=args.steps, lr=RATE, scheduler="constant", weight_decay=0.0,
        precision=args.precision, freeze=tuple(args.freeze), epochs=1,
    )  # fmt: skip
    device = torch.device(args.device)
    dtype = trainer.weight_dtype(section, device)
    speech = loading.load_checkpoint(path, device=args.device, dtype=dtype)
    trainer.freeze(speech, section)
    asked = card.read(Path(path))
    prompt = prompts.render(speech, asked.prompt, pool[0].source_lang, pool[0].target_lang)
    clips = pool[: args.steps * args.batch_size]
    if len(clips) < args.steps * args.batch_size:
        raise DataError(f"{len(pool)} clips make no {args.steps} whole steps.", "Set fewer --steps.")
    lengths = [Example(clip, ids).length for clip, ids in zip(clips, answers_of(speech, clips, "chat"), strict=True)]
    order = [i for step in trainer.plan_steps(lengths, section, SEED) for i in step]
    return Work(speech, prompt, clips, order, section)


def sordino(work: Work) -> list[float]:
    """-> the loss of every step."""
    encoded: Sequence[Any] = [None] * len(work.clips)
    if "encoder" in work.section.freeze:
        encoded = list(Features(work.speech, None).encode_each(work.clips, work.prompt))
    pairs = [Example(*row) for row in zip(work.clips, work.answers, encoded, strict=True)]
    with tempfile.TemporaryDirectory() as state:
        done = trainer.train(
            work.speech, pairs, work.section, prompt=work.prompt, seed=SEED, state=Path(state), label="sordino"
        )
    return [row["loss"] for row in done.log]


def collator(work: Work) -> Callable[[list[Clip]], dict[str, torch.Tensor]]:
    """Clips to a batch by the stock processor."""
    speech, processor = work.speech, work.speech.processor
    ends = {tuple(ids): processor.tokenizer.decode(ids[-1:]) for ids in work.answers}
    answers = {clip.id: ids for clip, ids in zip(work.clips, work.answers, strict=True)}

    def collate(clips: list[Clip]) -> dict[str, torch.Tensor]:
        texts = [work.prompt + (clip.target_text or "") + ends[tuple(answers[clip.id])] for clip in clips]
        audio = [load_clip(clip) for clip in clips]
        batch = dict(processor(text=texts, audio=audio, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True))
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, clip in enumerate(clips):
            ids = torch.tensor(answers[clip.id])
            last = int(batch["attention_mask"][row].nonzero().max()) + 1
            assert torch.equal(batch["input_ids"][row, last - len(ids) : last], ids), clip.id
            labels[row, last - len(ids) : last] = ids
        return batch | {"labels": labels}

    assert speech.pad_id() is not None
    return collate


def stock(work: Work) -> list[float]:
    """transformers' Trainer -> the loss of every step."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as out:
        options = TrainingArguments(
            out, per_device_train_batch_size=work.section.batch_size, max_steps=work.section.max_steps or -1,
            learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=work.section.max_grad_norm,
            weight_decay=0.0, train_sampling_strategy="sequential", remove_unused_columns=False, save_strategy="no",
            report_to="none", logging_steps=1, disable_tqdm=True, use_cpu=work.speech.device.type == "cpu", seed=SEED,
            bf16=trainer.precision_of(work.section, work.speech.device) == "bfloat16-mixed",
        )  # fmt: skip
        made = Trainer(
            work.speech.model, options, data_collator=collator(work), train_dataset=[work.clips[i] for i in work.order]
        )
        made.train()
    return [row["loss"] for row in made.state.log_history if "loss" in row]


SYSTEMS = {"sordino": sordino, "Trainer": stock}


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """One system, in this process."""
    work = work_of(args)
    tokens = sum(map(len, work.answers))
    cuda = work.speech.device.type == "cuda"
    release_memory()
    reset_peak_rss()
    before = peak_rss_bytes()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start, cpu = time.perf_counter(), time.process_time()
    losses = SYSTEMS[name](work)
    if cuda:
        torch.cuda.synchronize()
    spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = int(torch.cuda.max_memory_allocated()) if cuda else peak_rss_bytes() - before
    return {"seconds": spent, "cpu_seconds": cpu, "peak_bytes": peak, "tokens": tokens, "losses": losses}


def in_process(words: Sequence[str], name: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), *words, "--system", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:] or done.stdout[-3000:])
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def compare(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    for number in range(args.rounds):
        for name in SYSTEMS:
            row = in_process(words, name)
            best = rows.setdefault(name, row)
            best |= {key: min(best[key], row[key]) for key in ("seconds", "cpu_seconds", "peak_bytes")}
            note(f"round {number + 1}, {name}: {row['seconds']:.1f} s, {row['cpu_seconds']:.1f} CPU s")
    losses = [rows[name].pop("losses") for name in SYSTEMS]
    apart = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(*losses, strict=True))
    return {"systems": rows, "first_losses": [row[0] for row in losses], "most_apart": apart}


def table(result: dict[str, Any], device: str) -> str:
    ours, theirs = (result["systems"][name] for name in SYSTEMS)
    key = "cpu_seconds" if device == "cpu" else "seconds"
    lines = [f"{'':<10}{'seconds':>9}{'CPU s':>9}{'answer tokens/s':>17}{'peak MiB':>10}"]
    for name, row in result["systems"].items():
        lines.append(
            f"{name:<10}{row['seconds']:>9.1f}{row['cpu_seconds']:>9.1f}{row['tokens'] / row['seconds']:>17.1f}"
            f"{row['peak_bytes'] / 2**20:>10.0f}"
        )
    faster, less = theirs[key] / ours[key], ours["peak_bytes"] / theirs["peak_bytes"]
    lines += ["", f"sordino's steps are {faster:.2f} times as fast, with {less:.2f} of the memory"]
    lines += [f"losses differ by {result['most_apart']:.1e} at the most"]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run: its training clips, and its teacher to go on with")
    parser.add_argument("--model", type=Path, help="another model than the run's teacher")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--freeze", nargs="*", default=[], choices=["encoder", "projector", "embeddings"])
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16-mixed", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--system", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    words = [*(sys.argv[1:] if words is None else words)]
    args = parser().parse_args(words)
    torch.set_num_threads(args.threads)
    try:
        if args.system:
            print(json.dumps(measure(args, args.system)))
            return 0
        result = compare(args, words)
    except SordinoError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(result, args.device))
    if args.json:
        files.write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
