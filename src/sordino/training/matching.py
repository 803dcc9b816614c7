"""Healing an encoder without texts: its states of a clip are pulled to those that another encoder gave for it.

The loss of a row of states (D,) is |s - t|^2 / |t|^2, so that families whose states are large or small train alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sordino.data.audio import load_clip
from sordino.errors import FamilyError
from sordino.models.speech import SpeechModel
from sordino.training.collate import Example


def relative_error(speech: SpeechModel, examples: Sequence[Example], prompt: str) -> Tensor:
    """Sum over all rows of states of these clips, a scalar. Every example has its target.

    Raises FamilyError for targets of another shape: they are of another encoder.
    """
    waves = [load_clip(example.clip) for example in examples]
    inputs = speech.family.audio.prepare(speech.processor, waves, [prompt] * len(waves))
    states = torch.cat(speech.states(inputs)).float()  # (N, D)
    targets = torch.cat([example.target.states for example in examples if example.target])
    targets = targets.to(states.device, torch.float32)
    if states.shape != targets.shape:
        raise FamilyError(
            f"{speech.path}: its encoder gives {tuple(states.shape)} states where {tuple(targets.shape)} are to be "
            "matched.",
            "Match the encoder that the model was made from.",
        )
    return ((states - targets).square().sum(-1) / targets.square().sum(-1)).sum()
