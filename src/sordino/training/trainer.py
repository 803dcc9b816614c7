"""One training loop for teacher, student and adapter.

A plain loop, because three things are needed that a general trainer does not promise together: a run killed at any
instant resumes to the same bytes, no state is pickled, and the loss is the mean over the answer tokens of the whole
step (transformers' own Qwen2-Audio loss is multiplied by the accumulation steps). Logits are computed at answer
positions alone, which spares a (B, S, 156,032) tensor.

Resume points hold the trained weights and the optimizer's moments as safetensors, and the step and log as JSON; each
is written beside and renamed, the newest whole one counts. The order of batches and every step's random numbers are
functions of the seed alone, so nothing else is needed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sordino.config.run_layout import DATA, split_file
from sordino.config.schema import TrainSection
from sordino.errors import DataError, RecipeError
from sordino.measure.predict import LOGITS_BYTES
from sordino.models.answers import SpeechLM
from sordino.models.generation import batches_by_length
from sordino.models.speech import SpeechModel
from sordino.runtime.files import json_line
from sordino.runtime.progress import step_bar
from sordino.training.collate import Example, collate, epoch_batches
from sordino.training.objectives import Objective, cross_entropy, summed_loss

CHECKPOINT = "step-"


@dataclass(frozen=True)
class Trained:
    """steps: optimizer steps; log: one {step, epoch, loss, lr} per step; tokens: answer tokens seen."""

    steps: int
    log: tuple[dict[str, float], ...]
    tokens: int


def precision_of(section: TrainSection, device: torch.device) -> str:
    """'auto' resolved: float32 on a CPU, bfloat16 products with float32 weights on an accelerator."""
    if section.precision != "auto":
        return section.precision
    return "float32" if device.type == "cpu" else "bfloat16-mixed"


def weight_dtype(section: TrainSection, device: torch.device) -> torch.dtype:
    """The type the trained weights (and with them the optimizer's moments) are held in."""
    return torch.bfloat16 if precision_of(section, device) == "bfloat16" else torch.float32


def freeze(speech: SpeechModel, section: TrainSection) -> None:
    """Train every weight but those of the frozen parts; what the family never trains stays frozen.

    Raises RecipeError for a part that the family does not have.
    """
    for part in section.freeze:
        if part not in speech.family.parts:
            raise RecipeError(f"freeze: a {speech.family.model_type} model has no {part}.", "Leave it out.")
        for tensor in speech.tensors_of(part).values():
            tensor.requires_grad_(False)


def plan_steps(lengths: Sequence[float], section: TrainSection, seed: int) -> list[list[int]]:
    """The batches of the whole training, in order; fractions of an epoch and max_steps cut it."""
    per_epoch = math.ceil(len(lengths) / section.batch_size)
    total = max(1, round(section.epochs * per_epoch))
    if section.max_steps is not None:
        total = min(total, section.max_steps)
    epochs = (epoch_batches(lengths, section.batch_size, epoch, seed) for epoch in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(epochs), total))


def train(
    speech: SpeechModel,
    examples: Sequence[Example],
    section: TrainSection,
    *,
    prompt: str,
    seed: int,
    state: Path,
    label: str,
    dev: Sequence[Example] = (),
    objective_at: Callable[[float], Objective] = lambda _: cross_entropy,
    log: Path | None = None,
) -> Trained:
    """Train the weights that require a gradient, in place; resumes from `state` where it holds a resume point.

    objective_at: of the training clips, given the share of the steps that is done; dev: held-out examples whose
    cross-entropy is logged at the end of every epoch; log: file to which every step's row is added at once.
    Raises DataError where there is nothing to train on, or the loss is no longer a number.
    """
    if not examples:
        raise DataError(f"{label}: no training clips.", f"Look at {DATA}/{split_file('train')} and the stage's mix.")
    steps = plan_steps([e.length for e in examples], section, seed)
    per_epoch = math.ceil(len(examples) / section.batch_size)
    every = section.checkpoint_steps or per_epoch
    run = _Run.of(speech, section, len(steps), state)
    done = run.resume()
    if log:  # steps behind the resume point are made again
        log.write_text("".join(json_line(row) + "\n" for row in run.log), encoding="utf-8")
    mixed = precision_of(section, speech.device) == "bfloat16-mixed"
    compared = any(example.teacher for example in examples)  # takes several times the logits' memory
    most_bytes = LOGITS_BYTES if section.gradient_checkpointing or compared else None
    if section.gradient_checkpointing:
        set_checkpointing(speech.recomputing, True)
    speech.model.train()
    part = section.batch_size // section.accumulate
    try:
        with step_bar(label, len(steps), done) as advance:
            for step in range(done, len(steps)):
                torch.manual_seed(seed * 1_000_003 + step)  # dropout depends on the step, not on what ran before
                chosen = [examples[i] for i in steps[step]]
                objective = objective_at(step / len(steps))
                loss = _accumulate(speech, chosen, part, prompt, mixed, objective, most_bytes)
                if not math.isfinite(loss):
                    raise diverged(label, "loss", loss, step + 1)
                row = {"step": step + 1, "epoch": round((step + 1) / per_epoch, 4), "loss": loss}
                norm = run.clip(section.max_grad_norm)
                if not math.isfinite(norm):
                    raise diverged(label, "gradient", norm, step + 1)
                row["lr"] = run.update()
                if dev and ((step + 1) % per_epoch == 0 or step + 1 == len(steps)):
                    row["dev_loss"] = mean_loss(speech, dev, section.batch_size, prompt, mixed)
                run.log.append(row)
                if log:
                    with log.open("a", encoding="utf-8") as out:
                        out.write(json_line(row) + "\n")
                advance(in_words(row), keep="dev_loss" in row)
                if (step + 1) % every == 0 and step + 1 < len(steps):
                    run.checkpoint(step + 1)
    finally:
        speech.model.eval()
        if section.gradient_checkpointing:
            set_checkpointing(speech.recomputing, False)
    tokens = sum(len(examples[i].answer) for batch in steps for i in batch)
    return Trained(len(steps), tuple(run.log), tokens)


def in_words(row: Mapping[str, float]) -> str:
    """A step of the log, for people."""
    held_out = f", dev loss {row['dev_loss']:.4f}" if "dev_loss" in row else ""
    return f"loss {row['loss']:.4f}{held_out}, lr {row['lr']:.2e}"


def set_checkpointing(model: nn.Module, on: bool) -> None:
    """Compute activations again in the backward pass, or keep them. transformers 5.24 renamed both methods."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()


def diverged(label: str, what: str, value: float, step: int) -> DataError:
    return DataError(f"{label}: the {what} became {value} at step {step}.", "Lower lr or raise warmup_ratio.")


def _autocast(speech: SpeechModel, mixed: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(speech.device.type, torch.bfloat16) if mixed else contextlib.nullcontext()


def _accumulate(
    speech: SpeechModel,
    chosen: Sequence[Example],
    part: int,
    prompt: str,
    mixed: bool,
    objective: Objective = cross_entropy,
    most_bytes: int | None = None,
) -> float:
    """Gradients of the mean loss over all answer tokens of a step, run in parts. Returns that mean (nats a token)."""
    model, total = SpeechLM(speech), sum(len(e.answer) for e in chosen)
    sum_loss = 0.0
    for start in range(0, len(chosen), part):
        batch = collate(speech, chosen[start : start + part], prompt)
        with _autocast(speech, mixed):
            loss = summed_loss(model, batch, objective, most_bytes)
        (loss / total).backward()  # type: ignore[no-untyped-call]
        sum_loss += float(loss.detach())
    return sum_loss / total


@torch.no_grad()
def mean_loss(speech: SpeechModel, examples: Sequence[Example], size: int, prompt: str, mixed: bool = False) -> float:
    """Teacher-forced cross-entropy of held-out answers, nats a token; leaves the mode (train, eval) as it was."""
    model, training = SpeechLM(speech), speech.model.training
    speech.model.eval()
    total, tokens = 0.0, 0
    for part in batches_by_length([example.length for example in examples], size):
        with _autocast(speech, mixed):
            batch = collate(speech, [examples[i] for i in part], prompt)
            loss = summed_loss(model, batch, cross_entropy, LOGITS_BYTES)
        total, tokens = total + float(loss), tokens + batch.tokens
    speech.model.train(training)
    return total / tokens


@dataclass
class _Run:
    """Weights, optimizer, schedule and log of a training, and its resume points."""

    names: Sequence[str]
    weights: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scheduler: Any
    log: list[dict[str, float]]
    state: Path

    @classmethod
    def of(cls, speech: SpeechModel, section: TrainSection, steps: int, state: Path) -> _Run:
        from transformers import get_scheduler

        trained = [(n, p) for n, p in speech.model.named_parameters() if p.requires_grad]
        matrices = [p for _, p in trained if p.ndim >= 2]
        vectors = [p for _, p in trained if p.ndim < 2]  # norms and biases are not decayed
        groups = [{"params": matrices, "weight_decay": section.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        # fused: torch's default on CUDA makes a temporary as large as all trained weights (16.8 GB for the 7 B model)
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=section.lr, fused=True)
        scheduler = get_scheduler(section.scheduler, optimizer, round(section.warmup_ratio * steps), steps)
        return cls([n for n, _ in trained], [p for _, p in trained], optimizer, scheduler, [], state)

    def clip(self, max_grad_norm: float) -> float:
        """Scale the gradients down to a norm of `max_grad_norm`. Returns the norm they had."""
        return float(nn.utils.clip_grad_norm_(self.weights, max_grad_norm))

    def update(self) -> float:
        """One optimizer step on the gradients that are there. Returns the learning rate it used."""
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def checkpoint(self, step: int) -> None:
        """Write a resume point beside, flush, rename; then drop the older ones."""
        target = self.state / f"{CHECKPOINT}{step:08d}"
        beside = self.state / f".{target.name}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        tensors: dict[str, Tensor] = {}
        for name, weight in zip(self.names, self.weights, strict=True):
            tensors[f"weight/{name}"] = weight.detach().contiguous()
            for key, value in self.optimizer.state[weight].items():
                tensors[f"{key}/{name}"] = value.contiguous()
        save_file(tensors, beside / "state.safetensors")
        schedule = {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"}
        (beside / "state.json").write_text(json.dumps({"step": step, "scheduler": schedule, "log": self.log}))
        for file in beside.iterdir():
            with file.open("rb") as data:
                os.fsync(data.fileno())
        beside.rename(target)
        for old in checkpoints(self.state):
            if old != target:
                shutil.rmtree(old)

    def resume(self) -> int:
        """Restore the newest resume point. Returns the number of steps that are done."""
        points = checkpoints(self.state)
        if not points:
            return 0
        tensors = load_file(points[-1] / "state.safetensors")
        saved = json.loads((points[-1] / "state.json").read_text())
        with torch.no_grad():
            for name, weight in zip(self.names, self.weights, strict=True):
                weight.copy_(tensors[f"weight/{name}"])
                if f"step/{name}" not in tensors:  # no gradient has reached this weight
                    continue
                moments = {k: tensors[f"{k}/{name}"] for k in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[weight] = {k: v.to(weight.device) for k, v in moments.items()}
                self.optimizer.state[weight]["step"] = tensors[f"step/{name}"].to(weight.device)
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **saved["scheduler"]})
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.log = list(saved["log"])
        return int(saved["step"])


def checkpoints(state: Path) -> list[Path]:
    """Whole resume points, oldest first."""
    return sorted(state.glob(f"{CHECKPOINT}*"))
