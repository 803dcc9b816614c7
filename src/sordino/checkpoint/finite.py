"""NaN and infinity in weights: one of them makes every answer '!!!!', or a score of nothing.

refuse_nonfinite("runs/x/20-teacher", model.state_dict().items())    # one pass, no copy

Loading looks at every weight, and so does what copies weights from file to file (writing.py, models/stored.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.errors import FamilyError
from sordino.runtime.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor


def refuse_nonfinite(where: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise FamilyError that names the first floating tensor with NaN or infinity. where: the model's path."""
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise nonfinite(where, name)


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor is finite. Least and greatest, since isfinite() would make a mask of the same size."""
    import torch

    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    if tensor.element_size() < 2:  # 8-bit floats have no comparisons
        tensor = tensor.float()
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def nonfinite(where: str | Path, name: str) -> FamilyError:
    """What to say of a model whose weights of this name are no numbers."""
    return FamilyError(
        f"{where}: the weights '{printable(name)}' hold NaN or infinity, so the model answers nothing.",
        "Copy the model again; if it was trained, lower lr or raise warmup_ratio and train it again.",
    )
