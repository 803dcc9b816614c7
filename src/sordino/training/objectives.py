"""What training makes smaller.

An objective gives the sum over answer tokens and their number, so that the loss of a step is the mean over its tokens
however it was split.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from sordino.models.answers import AnswerBatch


class Objective(Protocol):
    """(logits (K, V) at the answer positions, batch) -> (sum in nats, number of tokens)."""

    def __call__(self, logits: Tensor, batch: AnswerBatch) -> tuple[Tensor, int]: ...


def cross_entropy(logits: Tensor, batch: AnswerBatch) -> tuple[Tensor, int]:
    """Of the answer tokens."""
    answers = batch.answers
    return nn.functional.cross_entropy(logits, answers, reduction="sum"), len(answers)
