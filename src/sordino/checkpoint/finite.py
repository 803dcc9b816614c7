"""NaN and infinity in weights: one of them makes every answer '!!!!', or a score of nothing.

refuse_nonfinite("runs/x/20-teacher", model.state_dict().items())    # tensors in memory: one pass, no copy
refuse_stored_nonfinite(Checkpoint.open(directory))                  # weights on disk, a few megabytes at a time
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.checkpoint.reading import CHUNK_BYTES, Checkpoint, torch_type
from sordino.errors import FamilyError
from sordino.runtime.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor

FLOATING = ("F16", "BF16", "F32", "F64")


def refuse_nonfinite(where: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise FamilyError that names the first floating tensor with NaN or infinity. where: the model's path."""
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise _problem(where, name)


def refuse_stored_nonfinite(stored: Checkpoint) -> None:
    """Raise FamilyError for a stored tensor with NaN or infinity. Reads every floating tensor once."""
    import torch

    for name, tensor in stored.tensors.items():
        if tensor.dtype in FLOATING:
            kind = torch_type(tensor.dtype)
            chunks = stored.chunks(name, CHUNK_BYTES)
            if not all(is_finite(torch.frombuffer(chunk, dtype=kind)) for chunk in chunks):
                raise _problem(stored.directory, name)


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor is finite. Least and greatest, since isfinite() would make a mask of the same size."""
    import torch

    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    if tensor.element_size() < 2:  # 8-bit floats have no comparisons
        tensor = tensor.float()
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def _problem(where: str | Path, name: str) -> FamilyError:
    return FamilyError(
        f"{where}: the weights '{printable(name)}' hold NaN or infinity, so the model answers nothing.",
        "Copy the model again; if it was trained, lower lr or raise warmup_ratio and train it again.",
    )
