"""One training loop for teacher, student and adapter.

A plain loop, because three things are needed that a general trainer does not promise together: a run killed at any
instant resumes to the same bytes, no state is pickled, and the loss is the mean over the answer tokens of the whole
step (transformers' own Qwen2-Audio loss is multiplied by the accumulation steps). Logits are computed at answer
positions alone, which spares a (B, S, 156,032) tensor.

Resume points (training/resume.py) hold weights, moments, step and log. The order of batches and every step's random
numbers are functions of the seed alone, so nothing else is needed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sordino.config.run_layout import DATA, split_file
from sordino.config.schema import QloraSection, TrainSection
from sordino.errors import DataError, RecipeError
from sordino.measure.predict import LOGITS_BYTES
from sordino.models.answers import AnswerBatch
from sordino.models.speech import SpeechModel, batches_by_length
from sordino.runtime.executor import ahead
from sordino.runtime.files import json_line
from sordino.runtime.progress import step_bar
from sordino.runtime.world import World, current
from sordino.training import optimizers, resume, sharding
from sordino.training.collate import Example, collate, epoch_batches, silenced
from sordino.training.objectives import Objective, Step, cross_entropy
from sordino.training.sharding import Sharded

AHEAD = 2  # batches that are read while a step runs


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

    In a world of several processes all of them call it with the same arguments; afterwards the first has the whole
    model, on the CPU, and the others have none of its weights.

    objective_at: of the training clips, given the share of the steps that is done; dev: held-out examples whose
    cross-entropy is logged at the end of every epoch; log: file to which every step's row is added at once.
    Raises DataError where there is nothing to train on, or the loss is no longer a number.
    """
    if not examples:
        raise DataError(f"{label}: no training clips.", f"Look at {DATA}/{split_file('train')} and the stage's mix.")
    world = current()
    steps = plan_steps([e.length for e in examples], section, seed)
    per_epoch = math.ceil(len(examples) / section.batch_size)
    every = section.checkpoint_steps or per_epoch
    compared = any(example.teacher for example in examples)  # which takes several tensors of the logits' size
    model = Step(speech, LOGITS_BYTES if section.gradient_checkpointing or compared else None)
    sharded = spread(model, section, world)
    run = _Run.of(speech, section, len(steps), state, seed, world, sharded is not None)
    done = run.resume()
    if log and world.first:  # steps behind the resume point are made again
        log.write_text("".join(json_line(row) + "\n" for row in run.log), encoding="utf-8")
    mixed = precision_of(section, speech.device) == "bfloat16-mixed"
    part = section.batch_size // section.accumulate
    parts = (share for step in steps[done:] for share in _shares([examples[i] for i in step], part, world))
    with (
        _in_training(speech, section),
        step_bar(label, len(steps), done) as advance,
        contextlib.closing(_batches(speech, parts, prompt)) as batches,
    ):
        for step in range(done, len(steps)):
            torch.manual_seed(_seed(seed, step, world))  # dropout depends on the step, not on what ran before
            chosen = [examples[i] for i in steps[step]]
            own = itertools.islice(batches, math.ceil(len(chosen) / part))
            objective, tokens = objective_at(step / len(steps)), sum(e.positions for e in chosen)
            loss = _accumulate(model, own, tokens, mixed, objective, world)
            if not math.isfinite(loss):
                raise diverged(label, "loss", loss, step + 1)
            row = {"step": step + 1, "epoch": round((step + 1) / per_epoch, 4), "loss": loss}
            if sharded is None:
                sharding.sum_gradients(run.weights, world)
            norm = run.clip(section.max_grad_norm)
            if not math.isfinite(norm):
                raise diverged(label, "gradient", norm, step + 1)
            row["lr"] = run.update()
            if dev and ((step + 1) % per_epoch == 0 or step + 1 == len(steps)):
                row["dev_loss"] = mean_loss(speech, dev, section.batch_size, prompt, mixed, model, world)
            run.log.append(row)
            if log and world.first:
                with log.open("a", encoding="utf-8") as out:
                    out.write(json_line(row) + "\n")
            advance(in_words(row), keep="dev_loss" in row)
            if (step + 1) % every == 0 and step + 1 < len(steps):
                run.checkpoint(step + 1)
    if sharded:
        sharding.gather(sharded, world)
    tokens = sum(examples[i].positions for batch in steps for i in batch)
    return Trained(len(steps), tuple(run.log), tokens)


def in_words(row: Mapping[str, float]) -> str:
    """A step of the log, for people."""
    held_out = f", dev loss {row['dev_loss']:.4f}" if "dev_loss" in row else ""
    return f"loss {row['loss']:.4f}{held_out}, lr {row['lr']:.2e}"


@contextlib.contextmanager
def _in_training(speech: SpeechModel, section: TrainSection) -> Iterator[None]:
    """The model's mode, and what it computes twice."""
    if section.gradient_checkpointing:
        set_checkpointing(speech.recomputing, True)
    speech.model.train()
    try:
        yield
    finally:
        speech.model.eval()
        if section.gradient_checkpointing:
            set_checkpointing(speech.recomputing, False)


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


def _attention(speech: SpeechModel, mixed: bool) -> contextlib.AbstractContextManager[Any]:
    """Of a training step, its recomputations included.

    In bfloat16 on a CPU the backward pass of torch's fused attention takes 7 times as long as in float32, 40 % of a
    step (docs/log.md): it is computed in plain products there.
    """
    dtype = torch.bfloat16 if mixed else next(speech.model.parameters()).dtype
    plain = speech.device.type == "cpu" and dtype == torch.bfloat16
    return sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()


def spread(model: Step, section: TrainSection, world: World) -> Sharded | None:
    """Shard the model where several processes train all of it, or its precision is sharding's; else None."""
    precision = precision_of(section, model.lm.speech.device)
    if isinstance(section, QloraSection) or (world.size == 1 and precision != "bfloat16-sharded"):
        return None
    return sharding.shard(model, precision, world)


Share = tuple[Sequence[Example], int]  # clips, and of how many the answers count: the first ones


def _shares(chosen: Sequence[Example], part: int, world: World) -> Iterator[Share]:
    """What this process runs of a step, one share for each of its parts: every process runs as many parts, and as many
    clips in each, since some encoders hear a clip at a time and a layer is gathered each time.

    Where there are too few, the part's first clip runs once more without counting.
    """
    for start in range(0, len(chosen), part):
        clips = chosen[start : start + part]
        own = world.share(clips)
        lacking = -(-len(clips) // world.size) - len(own)
        yield [*own, *clips[:lacking]], len(own)


def _batches(speech: SpeechModel, shares: Iterable[Share], prompt: str) -> Generator[AnswerBatch]:
    """Of the shares, read while the step before runs: no more than AHEAD and the one in use are in memory."""

    def make(share: Share) -> AnswerBatch:
        clips, counted = share
        batch = collate(speech, clips, prompt)
        return batch if counted == len(clips) else silenced(batch, counted)

    yield from ahead(make, shares, AHEAD, threads=1)


def _seed(seed: int, step: int, world: World) -> int:
    return seed * 1_000_003 + step + (world.rank << 40)


def _accumulate(
    model: Step,
    batches: Iterable[AnswerBatch],
    total: int,
    mixed: bool = False,
    objective: Objective = cross_entropy,
    world: World | None = None,
) -> float:
    """Gradients of the mean loss over all answer tokens of a step, run in parts. Returns that mean (nats a token).

    total: answer tokens of the step, in all its parts and processes.
    """
    sum_loss = 0.0
    for batch in batches:
        with _attention(model.lm.speech, mixed):
            with _autocast(model.lm.speech, mixed):
                loss = model(batch, objective)
            (loss / total).backward()
        sum_loss += float(loss.detach())
    (sum_loss,) = (world or World()).sum(sum_loss)
    return sum_loss / total


@torch.no_grad()
def mean_loss(
    speech: SpeechModel,
    examples: Sequence[Example],
    size: int,
    prompt: str,
    mixed: bool = False,
    model: Step | None = None,
    world: World | None = None,
) -> float:
    """Teacher-forced cross-entropy of held-out answers, nats a token; leaves the mode (train, eval) as it was.

    model: of the training that goes on; world: that it runs in.
    """
    model, world, training = model or Step(speech, LOGITS_BYTES), world or World(), speech.model.training
    speech.model.eval()
    total = 0.0
    parts = batches_by_length([example.length for example in examples], size)
    shares = (share for part in parts for share in _shares([examples[i] for i in part], size, world))
    with contextlib.closing(_batches(speech, shares, prompt)) as batches:
        for batch in batches:
            with _autocast(speech, mixed):
                total += float(model(batch, cross_entropy))
    speech.model.train(training)
    return world.sum(total)[0] / sum(example.positions for example in examples)


@dataclass
class _Run:
    """Weights, optimizer, schedule and log of a training, and its resume points."""

    names: Sequence[str]
    weights: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scheduler: Any
    log: list[dict[str, float]]
    state: Path
    world: World

    @classmethod
    def of(
        cls,
        speech: SpeechModel,
        section: TrainSection,
        steps: int,
        state: Path,
        seed: int,
        world: World,
        sharded: bool = False,
    ) -> _Run:
        from transformers import get_scheduler

        trained = {name: weight for name, weight in speech.model.named_parameters() if weight.requires_grad}
        weights = list(trained.values())
        optimizer = optimizers.make_optimizer(weights, section, _seed(seed, 0, world) if sharded else seed)
        scheduler = get_scheduler(section.scheduler, optimizer, round(section.warmup_ratio * steps), steps)
        return cls(list(trained), weights, optimizer, scheduler, [], state, world)

    def clip(self, max_grad_norm: float) -> float:
        """Scale the gradients down to a norm of `max_grad_norm`. Returns the norm they had."""
        return float(sharding.full(nn.utils.clip_grad_norm_(self.weights, max_grad_norm)))

    def update(self) -> float:
        """One optimizer step on the gradients that are there. Returns the learning rate it used."""
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def checkpoint(self, step: int) -> None:
        """Write a resume point, and drop the older ones."""
        tensors: dict[str, Tensor] = {}
        for name, weight in zip(self.names, self.weights, strict=True):
            tensors[f"weight/{name}"] = weight.detach().contiguous()
            for key, value in optimizers.state_of(self.optimizer, weight).items():
                tensors[f"{key}/{name}"] = value.contiguous()
        schedule = {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"}
        resume.write(self.state, step, tensors, {"step": step, "scheduler": schedule, "log": self.log}, self.world)

    def resume(self) -> int:
        """Restore the newest resume point. Returns the number of steps that are done."""
        points = resume.checkpoints(self.state)
        if not points:
            return 0
        saved = resume.facts_of(points[-1])
        weights = {f"weight/{name}": weight for name, weight in zip(self.names, self.weights, strict=True)}
        tensors = resume.read(points[-1], weights)
        with torch.no_grad():
            for name, weight in zip(self.names, self.weights, strict=True):
                weight.copy_(tensors[f"weight/{name}"])
                keys = [key for key in optimizers.STATES if f"{key}/{name}" in tensors]
                if keys:  # else no gradient has reached this weight
                    optimizers.restore(self.optimizer, weight, {key: tensors[f"{key}/{name}"] for key in keys})
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **saved["scheduler"]})
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.log = list(saved["log"])
        return int(saved["step"])
