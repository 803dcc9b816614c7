"""AdamW (Loshchilov & Hutter 2019), its moments in 8 bits (Dettmers et al. 2022), and weights held in bfloat16.

A bfloat16 number has 8 bits of precision: what is added to it is lost where it is smaller than half of their last one.
At lr 1e-5 that is most of what AdamW adds (benchmarks/bfloat16.py counts), and the second moment, which shrinks by a
thousandth a step, never shrinks at all. Rounded stochastically, up or down with a chance that makes the mean right,
small updates add up (Zamirai et al. 2020, "Revisiting BFloat16 Training").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from sordino.config.schema import TrainSection

CHUNK = 2**24  # weights of which float32 copies exist at once: whole blocks
BLOCK = 256  # weights whose 8-bit moments share a scale, in bitsandbytes
# what is remembered of a weight; of 8 bits, small weights have no `absmax`
STATES = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2", "step")


def make_optimizer(weights: Sequence[nn.Parameter], section: TrainSection, seed: int) -> torch.optim.Optimizer:
    """The optimizer of a section. seed: of stochastic rounding; each process of a sharded training has its own."""
    matrices = [p for p in weights if p.ndim >= 2]
    vectors = [p for p in weights if p.ndim < 2]  # norms and biases are not decayed
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": section.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    stochastic = section.rounding == "stochastic" and any(p.dtype == torch.bfloat16 for p in weights)
    if section.optimizer == "adamw8bit":
        return _adamw8bit(groups, section.lr, seed if stochastic else None)
    if stochastic:
        return StochasticAdamW(groups, section.lr, seed)
    # fused: torch's default on CUDA makes a temporary as large as all trained weights (16.8 GB for the 7 B model)
    return torch.optim.AdamW(groups, lr=section.lr, fused=True)


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> bfloat16, to either neighbour with a chance that is the nearer one's in proportion.

    A bfloat16 number is the upper half of a float32 number: noise in the lower half carries into it as often as it
    should.
    """
    noise = torch.randint(2**16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    return ((values.view(torch.int32) + noise) & -(2**16)).view(torch.float32).to(torch.bfloat16)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW of bfloat16 weights, computed in float32 by torch's fused kernel; weights and moments are rounded
    stochastically.

    The random numbers of a step depend on the seed, the step and the order of the weights alone.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, seed: int) -> None:
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})
        self.seed, self.generators = seed, _Generators()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(group, weight, weight.grad)

    def _update(self, group: Mapping[str, Any], weight: nn.Parameter, gradient: Tensor) -> None:
        state = self.state[weight]
        if not state:
            state |= {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            state["step"] = torch.zeros((), device=weight.device)
        before = state["step"].clone()
        generator = self.generators.at(self.seed, int(before), weight.device)
        for stored in _chunks(weight.detach(), gradient, state["exp_avg"], state["exp_avg_sq"]):
            value, slope, mean, square = wide = [part.float() for part in stored]
            adamw(
                [value], [slope], [mean], [square], [], [before.clone()], fused=True, amsgrad=False, maximize=False,
                beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], eps=group["eps"],
                weight_decay=group["weight_decay"],
            )  # fmt: skip
            for part, computed in ((stored[i], wide[i]) for i in (0, 2, 3)):
                part.copy_(round_stochastically(computed, generator) if part.dtype == torch.bfloat16 else computed)
        state["step"] = before + 1


class _Generators:
    """Random numbers that a step begins anew, one stream for all of its weights."""

    def __init__(self) -> None:
        self.step = -1
        self.generator: torch.Generator | None = None

    def at(self, seed: int, step: int, device: torch.device) -> torch.Generator:
        if self.generator is None:
            self.generator = torch.Generator(device)
        if step != self.step:
            self.generator.manual_seed((seed * 1_000_003 + step) % 2**63)
            self.step = step
        return self.generator


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other as it is."""
    to_local = getattr(tensor, "to_local", None)  # importing DTensor to ask takes a second
    return tensor if to_local is None else to_local()


def _chunks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Views of the same so many elements of each, one after the other; what is written into them stays."""
    flat = [local(tensor).view(-1) for tensor in tensors]
    for start in range(0, len(flat[0]), CHUNK):
        yield [tensor[start : start + CHUNK] for tensor in flat]


def _adamw8bit(groups: Sequence[dict[str, Any]], lr: float, seed: int | None) -> torch.optim.Optimizer:
    """bitsandbytes' blockwise 8-bit AdamW. seed: of stochastic rounding; None: to the nearest."""
    from bitsandbytes.optim import AdamW8bit

    generators = _Generators()

    class Rounding(AdamW8bit):  # type: ignore[misc]
        """Updates float32 copies of a weight, piece by piece: moments in blocks need nothing of other blocks."""

        def update_step(self, group: Any, p: nn.Parameter, gindex: int, pindex: int) -> None:
            if seed is None or p.dtype != torch.bfloat16:
                super().update_step(group, p, gindex, pindex)
                return
            assert p.grad is not None
            state = self.state[p]
            before = int(state["step"])
            generator = generators.at(seed, before, p.device)
            blocks = {name: state[name] for name in ("absmax1", "absmax2") if name in state}
            moments = _chunks(p.data, p.grad.contiguous(), state["state1"], state["state2"])
            for i, (stored, gradient, first, second) in enumerate(moments):
                scales = {name: whole[i * CHUNK // BLOCK : (i + 1) * CHUNK // BLOCK] for name, whole in blocks.items()}
                piece = nn.Parameter(stored.float())
                piece.grad = gradient.float()
                self.state[piece] = {**state, **scales, "state1": first, "state2": second, "step": before}
                super().update_step(group, piece, gindex, pindex)
                del self.state[piece]
                stored.copy_(round_stochastically(piece.data, generator))
            state["step"] = before + 1

    optimizer: torch.optim.Optimizer = Rounding(groups, lr=lr)
    return optimizer


def state_of(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, Tensor]:
    """What an optimizer remembers of a weight, by name; empty where no gradient has reached it."""
    kept = {key: value for key, value in optimizer.state[weight].items() if not key.startswith("qmap")}
    return {key: value if isinstance(value, Tensor) else torch.tensor(value) for key, value in kept.items()}


def restore(optimizer: torch.optim.Optimizer, weight: nn.Parameter, state: Mapping[str, Tensor]) -> None:
    """Put back what `state_of` gave."""
    init: Any = getattr(optimizer, "init_state", None)
    if init is None:
        optimizer.state[weight] = {key: value.to(weight.device) for key, value in state.items()}
        return
    groups = enumerate(optimizer.param_groups)
    group, place = next((g, i) for g, each in groups for i, p in enumerate(each["params"]) if p is weight)
    init(optimizer.param_groups[group], weight, group, place)  # its tables of 8-bit values are not stored
    for key, value in state.items():
        if key == "step":
            optimizer.state[weight]["step"] = int(value)
        else:
            optimizer.state[weight][key].copy_(value)
