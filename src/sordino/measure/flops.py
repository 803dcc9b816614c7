"""How long a training takes, from shapes and the operations a second that a device reaches. No torch.

A weight costs 2 operations a token going forth, and 4 going back: 2 for the gradient of its input, 2 for its own
(Kaplan et al. 2020, "Scaling Laws for Neural Language Models"). Attention's products of positions are left out: 3 % for
the 7 B model and 30 s of audio.
"""

from __future__ import annotations

from collections.abc import Collection

from sordino.measure.predict import Batch
from sordino.models import shapes
from sordino.models.shapes import Model


def of_clip(
    model: Model, seconds: float, *, checkpointing: bool = False, frozen: Collection[str] = (), adapter: bool = False
) -> float:
    """Operations for one clip of this length in one epoch.

    An adapter's base has no gradients of its own weights; checkpointing goes forth twice; a frozen encoder's states are
    cached, and cost nothing.
    """
    batch = Batch(1, seconds)
    tokens, states, answer = batch.tokens(model), batch.states(model), batch.answer()

    def weights(part: str) -> int:
        return shapes.count(t for t in model.tensors if t.part == part)

    passed = tokens * weights("decoder") + answer * weights("head") + tokens * weights("projector")
    if model.tied:
        passed += answer * weights("embedding")
    if "encoder" not in frozen:
        passed += states * weights("audio_encoder")
    times = 2 + (2 if adapter else 4) + (2 if checkpointing else 0)
    return float(times * passed)


def hours(operations: float, flops: float, devices: int) -> float:
    """flops: operations a second that one device reaches."""
    return operations / (flops * devices) / 3600
