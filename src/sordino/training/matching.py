"""Healing an encoder without texts: its states of a clip are pulled to those that another encoder gave for it.

The loss of a row of states (D,) is |s - t|^2 / |t|^2, so that families whose states are large or small train alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sordino.errors import FamilyError
from sordino.models.answers import IGNORED, AnswerBatch
from sordino.models.speech import SpeechModel


def relative_error(speech: SpeechModel, batch: AnswerBatch) -> Tensor:
    """Sum over all rows of states of a batch with states to match, a scalar; those of clips that do not count are 0.

    Raises FamilyError for states of another shape: they are of another encoder.
    """
    assert batch.inputs is not None and batch.matched is not None
    own = speech.states(batch.inputs)
    states = torch.cat(own).float()  # (N, D)
    matched = torch.cat(list(batch.matched)).to(states.device, torch.float32)
    if states.shape != matched.shape:
        raise FamilyError(
            f"{speech.path}: its encoder gives states {tuple(states.shape)} where {tuple(matched.shape)} are to be "
            "matched.",
            "Match the states of the encoder that this one was made from.",
        )
    errors = (states - matched).square().sum(-1) / matched.square().sum(-1)
    counted = (batch.labels != IGNORED).any(-1)
    return (errors * counted.repeat_interleave(torch.tensor([len(rows) for rows in own], device=counted.device))).sum()
