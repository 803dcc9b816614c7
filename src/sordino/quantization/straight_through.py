"""Training through rounding: in the forward pass a weight is what its export will be read back as.

The gradient passes the rounding as if it were not there (the straight-through estimator: Bengio et al. 2013,
arXiv:1308.3432). The weights that are trained are kept beside in full precision, and move until what they are rounded
to does.

- Integers of b bits: each group's scale is fitted once, to the weights that training starts from. Weights then move
  between the integers of a grid that stands still.
- nf4: scales are those of the weights of the moment, as the writer computes them.

An embedding is rounded once and not trained: its table would have to be rounded whole for the few rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sordino.errors import FamilyError
from sordino.layouts import tables
from sordino.models import nf4
from sordino.models.speech import SpeechModel
from sordino.quantization.integer import Rounded, Scheme, nearest, quantize

WEIGHT = "weight"


class _StraightThrough(torch.autograd.Function):
    """(weight, rounded) -> rounded, to the bit; the gradient goes to the weight whole."""

    @staticmethod
    def forward(_: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Rounding(nn.Module):
    """A parametrization: the trained weight (R, C) -> what is stored of it, in the same type."""

    def rounded(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            rounded = self.rounded(weight)
        result: Tensor = _StraightThrough.apply(weight, rounded)  # type: ignore[no-untyped-call]
        return result


class IntegerRounding(_Rounding):
    """To integers of fixed scales. scale: (R, C / G) bfloat16."""

    scale: Tensor

    def __init__(self, weight: Tensor, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.register_buffer("scale", quantize(weight.detach(), scheme).scale)

    def codes(self, weight: Tensor) -> Rounded:
        """What a writer stores of this weight (R, C)."""
        groups = weight.detach().float().view(len(weight), -1, self.scheme.group)
        return Rounded(nearest(groups, self.scale, self.scheme).flatten(-2), self.scale, self.scheme)

    def rounded(self, weight: Tensor) -> Tensor:
        return self.codes(weight).dequantized(weight.dtype)


class Nf4Rounding(_Rounding):
    """To 4-bit NormalFloat with double quantization, as `formats/nf4.py` writes it."""

    def rounded(self, weight: Tensor) -> Tensor:
        return nf4.nf4_rounded(weight.detach().to(torch.bfloat16), weight.dtype)


def attach_integers(speech: SpeechModel, bits: Mapping[str, int]) -> dict[str, IntegerRounding]:
    """Round the named weights in every forward pass from now on. bits: by the names weights are saved under.

    Returns each one's rounding by the same names; embeddings are rounded in place, and train no more. Raises
    FamilyError for weights that are of neither linear layers nor embeddings: nothing would round them.
    """
    roundings: dict[str, IntegerRounding] = {}
    for name, module in speech.model.named_modules():
        saved = speech.family.tensors.saved_name(f"{name}.{WEIGHT}")
        if bits.get(saved, 16) == 16 or not isinstance(module, (nn.Linear, nn.Embedding)):
            continue
        rounding = IntegerRounding(module.weight, Scheme(bits[saved], tables.group_for(module.weight.shape[1])))
        if isinstance(module, nn.Embedding):
            with torch.no_grad():
                module.weight.copy_(rounding.rounded(module.weight))
            module.weight.requires_grad_(False)
        else:
            parametrize.register_parametrization(module, WEIGHT, rounding, unsafe=True)
        roundings[saved] = rounding
    others = sorted(name for name, width in bits.items() if width != 16 and name not in roundings)
    if others:
        raise FamilyError(
            f"{others[0]} in {speech.path} is computed by none of torch's linear layers and embeddings, and cannot be "
            "trained through rounding.",
            "Export the model as it is (format mixed).",
        )
    return roundings


def attach_nf4(speech: SpeechModel) -> None:
    """Round in every forward pass what format nf4 rounds. Raises FamilyError for rows that are no whole blocks."""
    linears = nf4.linears(speech.family, speech.model)
    nf4.refuse_split_blocks(speech.family, linears)
    for module in linears.values():
        parametrize.register_parametrization(module, WEIGHT, Nf4Rounding(), unsafe=True)


def detach(speech: SpeechModel) -> None:
    """Leave the trained weights in the modules, not rounded, for a writer that rounds them alike."""
    for module in list(speech.model.modules()):
        if parametrize.is_parametrized(module, WEIGHT):
            parametrize.remove_parametrizations(module, WEIGHT, leave_parametrized=False)
