"""What training makes smaller.

An objective gives a sum over answer positions, so that the loss of a step is the mean over its tokens however it was
split: into parts, over processes, or here over the vocabulary's rows.

To add one: a function of this protocol. What it compares with beside the ids (a teacher's probabilities) becomes a
field of `models.answers.Targets`, with a row for each position; everything else is done by `summed_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sordino.models.answers import AnswerBatch, SpeechLM, Targets
from sordino.models.speech import SpeechModel
from sordino.training.matching import relative_error


class Objective(Protocol):
    """(logits (k, V) in float32, targets of the same k positions) -> sum over the positions in nats, a scalar."""

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor: ...


def cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """Of the answer tokens."""
    return nn.functional.cross_entropy(logits, targets.answers, reduction="sum")


@dataclass(frozen=True)
class Distillation:
    """(1 - weight) cross-entropy of the answer + weight KL(teacher || student), at temperature 1.

    Hinton et al. 2015 (arxiv.org/abs/1503.02531), with the ids as hard targets and the teacher's probabilities as soft
    ones. The k tokens that were kept are a class each, all others together are one more: this divergence is no larger
    than that over the whole vocabulary, and is it where all tokens were kept.
    """

    weight: float

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        teacher = targets.teacher
        assert teacher is not None
        at = torch.cat([teacher.ids, targets.answers[:, None]], -1)
        named = logits.gather(-1, at)  # (K, k + 1): of the kept tokens, last of the answer
        classes = named[:, :-1]
        if teacher.ids.shape[1] < logits.shape[1]:
            others = logits.scatter(-1, teacher.ids, -torch.inf).logsumexp(-1, keepdim=True)
            classes = torch.cat([classes, others], -1)
        total = classes.logsumexp(-1, keepdim=True)  # that of all logits
        logs = teacher.logs[:, : classes.shape[1]].to(logits.dtype)
        probabilities = logs.exp()
        divergence = torch.xlogy(probabilities, probabilities) - probabilities * (classes - total)
        return (1 - self.weight) * (total - named[:, -1:]).sum() + self.weight * divergence.sum()


def summed_loss(model: SpeechLM, batch: AnswerBatch, objective: Objective, most_bytes: int | None = None) -> Tensor:
    """Sum of an objective over the answer positions of a batch, a scalar that gradients flow from.

    most_bytes: of float32 logits (k, V) at once; more positions are taken one chunk after the other, and each chunk's
    logits are computed again in the backward pass. With 156,032 rows 256 MiB are 430 positions. None: all at once.
    """
    hidden, targets = model.hidden(batch), batch.targets
    chunk = chunk_rows(model, most_bytes)
    if chunk is None or len(targets) <= chunk:
        return objective(model.logits(hidden), targets)
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        run = partial(_of_chunk, model, objective)
        total = total + checkpoint(run, hidden[part], targets.rows(part), use_reentrant=False)
    return total


def _of_chunk(model: SpeechLM, objective: Objective, hidden: Tensor, targets: Targets) -> Tensor:
    return objective(model.logits(hidden), targets)


def chunk_rows(model: SpeechLM, most_bytes: int | None) -> int | None:
    """Positions whose logits take no more than so many bytes, one at least."""
    if most_bytes is None:
        return None
    rows = int(model.speech.model.get_output_embeddings().weight.shape[0])
    return max(1, most_bytes // (4 * rows))


class Step(nn.Module):
    """A batch to its summed loss, as one module: what shards a model gathers its weights in this forward pass.

    most_bytes: as of `summed_loss`.
    """

    def __init__(self, speech: SpeechModel, most_bytes: int | None = None) -> None:
        super().__init__()
        self.lm = SpeechLM(speech)
        self.most_bytes = most_bytes

    def forward(self, batch: AnswerBatch, objective: Objective) -> Tensor:
        """A scalar, in nats; of a batch with states to match their relative error."""
        if batch.matched is not None:
            return relative_error(self.lm.speech, batch)
        return summed_loss(self.lm, batch, objective, self.most_bytes)
