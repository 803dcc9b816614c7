"""GPTQ: weights rounded so that the outputs for real inputs change least (Frantar et al. 2023, arXiv:2210.17323).

Columns are rounded one after the other, and what rounding a column does to the layer's outputs is made up for in the
columns that are still to come, as far as the inputs X (one row a token) allow: with H = X'X and U the upper Cholesky
factor of its inverse, an error e in column i changes column j > i by -e U_ij / U_ii. Columns with the largest inputs go
first, while the rest can still make up for them; each group's scale is fitted beforehand, weighing each column's error
by its H_ii, so that the stored layout is the same as of rounding to nearest.

The decoder is taken layer by layer: every layer sees its inputs as the layers before it, already rounded, make them.
One layer's Hessians are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sordino.errors import FamilyError
from sordino.models.decoder_line import DecoderLine
from sordino.models.features import EncodedClip
from sordino.models.speech import SpeechModel
from sordino.pruning.decode_pool import Batch, KVCache
from sordino.pruning.speculative import SpeculativeDecoder
from sordino.quantization.integer import Rounded, Scheme, fit

DAMPING = 0.01  # of the mean of H's diagonal, added to it
BLOCK = 128  # columns whose errors are passed on to the rest together


@dataclass
class Hessian:
    """The mean of x'x over the tokens x (C,) seen, (C, C) in float32."""

    sum: Tensor | None = None
    tokens: int = 0

    def add(self, inputs: Tensor) -> None:
        """inputs: (N, C)."""
        rows = inputs.float()
        product = rows.T @ rows
        self.sum = product if self.sum is None else self.sum.add_(product)
        self.tokens += len(rows)

    @property
    def mean(self) -> Tensor:
        assert self.sum is not None
        return self.sum / self.tokens


def round_columns(weight: Tensor, hessian: Tensor, scheme: Scheme, damping: float = DAMPING) -> Rounded:
    """Round a weight (R, C) for inputs with this Hessian (C, C).

    Raises ValueError for weights or inputs that are not finite and columns that the group does not divide.
    """
    rows, columns = weight.shape
    if columns % scheme.group:
        raise ValueError(f"groups of {scheme.group} do not divide {columns} columns")
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("inputs that are not finite")
    remaining = weight.float().clone()
    diagonal = hessian.diagonal()
    _, scale = fit(remaining.view(rows, -1, scheme.group), scheme, diagonal.view(-1, scheme.group))
    order = diagonal.argsort(descending=True, stable=True)
    remaining, steps = remaining[:, order], scale.float().repeat_interleave(scheme.group, 1)[:, order]
    factor = _inverse_factor(hessian[order][:, order], damping)
    codes = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty(rows, end - start, device=weight.device)
        for i in range(start, end):
            q = (remaining[:, i] / steps[:, i]).round_().clamp_(scheme.low, -scheme.low - 1)
            codes[:, i] = q
            errors[:, i - start] = (remaining[:, i] - q * steps[:, i]) / factor[i, i]
            remaining[:, i:end] -= errors[:, i - start, None] * factor[i, i:end]
        remaining[:, end:] -= errors @ factor[start:end, end:]
    ordered = torch.empty_like(codes)
    ordered[:, order] = codes
    return Rounded(ordered, scale, scheme)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse of a damped Hessian; columns without inputs are left to themselves."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1  # all inputs are zero
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):  # not positive in float32: the next power of ten is
        return _inverse_factor(hessian, 10 * damping)
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return factor


@dataclass
class Calibration:
    """Clips that a model was asked about and what it should have answered. answers: ids with the stop token.

    memory: bytes for a batch, which decides how many clips share one and, by the order of sums, the last bits.
    """

    speech: SpeechModel
    encoded: Sequence[EncodedClip]
    answers: Sequence[Sequence[int]]
    memory: int
    batches: list[Batch] = field(default_factory=list, init=False)
    line: DecoderLine = field(init=False)
    hidden: list[Tensor] = field(default_factory=list, init=False)  # of each batch, before the next layer, on the CPU

    @torch.inference_mode()
    def start(self) -> None:
        """Embed prompts with their audio and answers."""
        engine = SpeculativeDecoder(self.speech, 0, self.memory)
        self.line = engine.line
        order = engine.batches(self.encoded, range(len(self.encoded)), dict(enumerate(self.answers)))
        for clips in order:
            encoded, answers = [self.encoded[i] for i in clips], [self.answers[i][:-1] for i in clips]
            self.batches.append(Batch.of(self.speech, encoded, answers))
        self.hidden = [self.line.enter(batch.embeds).cpu() for batch in self.batches]

    @torch.inference_mode()
    def run(self, index: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(batch, output (B, W, H), valid (B, W)) of a layer for every batch."""
        for number, (batch, hidden) in enumerate(zip(self.batches, self.hidden, strict=True)):
            context = self.line.context(batch.embeds, batch.positions, batch.allowed, batch.key_positions)
            yield number, self.line.run_layer(index, hidden.to(batch.embeds.device), context, KVCache()), batch.valid


def hessians(calibration: Calibration, layer: nn.Module, index: int) -> dict[str, Hessian]:
    """Name of a linear module in the layer -> the Hessian of its inputs; modules with the same inputs share one."""
    seen: dict[str, Tensor] = {}
    linear = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0]

        return hook

    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in linear.items()]
    sums: dict[str, Hessian] = {}
    try:
        for _, _, valid in calibration.run(index):
            shared: dict[int, str] = {}
            for name, inputs in seen.items():
                first = shared.setdefault(id(inputs), name)
                sums.setdefault(name, sums[first] if first != name else Hessian())
                if first == name:
                    sums[name].add(inputs[valid])
            seen.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def round_decoder(
    calibration: Calibration,
    schemes: Mapping[str, Scheme],
    earlier: Callable[[int], Mapping[str, Rounded] | None] = lambda _: None,
) -> Iterator[tuple[int, dict[str, Rounded]]]:
    """Round the decoder in place, layer by layer: (layer, live name of a linear module -> its weight, rounded).

    schemes: by live names, of the modules to round. earlier: what an earlier, interrupted run found for a layer.
    Raises FamilyError, naming the module, for weights or inputs that are not finite.
    """
    speech = calibration.speech
    prefix = speech.family.stacks["decoder"].path
    calibration.start()
    for index, layer in enumerate(speech.layers("decoder")):
        modules = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and f"{prefix}.{index}.{name}" in schemes
        }
        before = earlier(index)
        if before is None:
            inputs, rounded = hessians(calibration, layer, index), {}
            for name, module in modules.items():
                full = f"{prefix}.{index}.{name}"
                try:
                    rounded[full] = round_columns(module.weight.detach(), inputs[name].mean, schemes[full])
                except ValueError as error:
                    raise FamilyError(f"{full} in {speech.path} cannot be rounded: {error}.") from error
        else:
            rounded = dict(before)
        with torch.no_grad():
            for name, module in modules.items():
                weight = rounded[f"{prefix}.{index}.{name}"].dequantized(torch.bfloat16)
                module.weight.copy_(weight)
        for batch, out, _ in calibration.run(index):
            calibration.hidden[batch] = out.cpu()
        yield index, rounded
