"""Healing an encoder without texts: its states of a clip are pulled to those that another encoder gave for it.

The loss of a row of states (D,) is |s - t|^2 / |t|^2, so that families whose states are large or small train alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sordino.errors import FamilyError
from sordino.models.answers import AnswerBatch
from sordino.models.speech import SpeechModel


def relative_error(speech: SpeechModel, batch: AnswerBatch) -> Tensor:
    """Sum over all rows of states of a batch with states to match, a scalar; 0 for a batch that does not count.

    Raises FamilyError for states of another shape: they are of another encoder.
    """
    assert batch.inputs is not None and batch.matched is not None
    states = torch.cat(speech.states(batch.inputs)).float()  # (N, D)
    matched = torch.cat(list(batch.matched)).to(states.device, torch.float32)
    if states.shape != matched.shape:
        raise FamilyError(
            f"{speech.path}: its encoder gives states {tuple(states.shape)} where {tuple(matched.shape)} are to be "
            "matched.",
            "Match the states of the encoder that this one was made from.",
        )
    errors = (states - matched).square().sum(-1) / matched.square().sum(-1)
    return errors.sum() * bool(batch.tokens)
