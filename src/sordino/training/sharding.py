"""Training over several processes: the model sharded by torch's FSDP2 under our own loop, or replicated.

- Layers are gathered one by one, all else (embeddings, head, what lies around the layers) with the whole step. What is
  frozen and outside the forward pass, an encoder whose features are cached, stays whole.
- Gradients are summed, not averaged: the loss of a step is divided by its answer tokens, wherever they are. Sums are
  also what every backend has (gloo's average was a sum, pytorch#162338; NCCL's scaled sum was zero in bfloat16,
  pytorch#190745).
- Weights that are still to be read (models/deferred.py) are read when it is known which rows are whose: no process ever
  holds more than it keeps.
- An adapter's base is not sharded: in 4 bits it is small, and packed weights cannot be. Its gradients are summed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sordino.checkpoint.finite import is_finite, nonfinite
from sordino.models.speech import SpeechModel
from sordino.runtime.world import World, join_alone
from sordino.training.objectives import Step
from sordino.training.resume import is_sharded


def shard(step: Step, precision: str, world: World) -> Sharded:
    """Shard a step's model in place: every trained weight becomes a DTensor, of which each process holds its rows.

    Of weights that are still to be read, each process reads its rows. Raises FamilyError, in all processes, where they
    are no numbers.
    precision: bfloat16-sharded keeps float32 weights and computes in bfloat16; bfloat16 sums its gradients in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    speech = step.lm.speech
    join_alone(speech.device)
    policy = {
        "bfloat16-sharded": MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False),
        "bfloat16": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
    }.get(precision, MixedPrecisionPolicy(cast_forward_inputs=False))
    options: dict[str, Any] = {"mesh": init_device_mesh(speech.device.type, (world.size,)), "mp_policy": policy}
    outside, sharded = _outside(speech), Sharded.about_to_be(step)
    for scope in speech.family.stacks:
        for layer in speech.layers(scope):
            if not outside.issuperset(layer.parameters()):
                fully_shard(layer, **options)
    fully_shard(step, ignored_params=outside, **options)
    for module in step.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    _read(speech, world)
    return sharded


def _read(speech: SpeechModel, world: World) -> None:
    """Read a sharded model's weights: of a DTensor this process's rows, any other whole."""
    deferred = speech.deferred
    if deferred is None:
        return
    broken: dict[str, bool] = {}

    def own(name: str, weight: nn.Parameter) -> Tensor:
        rows = _rows(weight.shape[0], world) if is_sharded(weight) else None
        numbers = deferred.read(name, weight, rows)
        broken[name] = not is_finite(numbers)
        return numbers if rows is None else _part_of(weight, numbers)

    deferred.fill(speech.model, own)
    speech.deferred = None
    counts = zip(broken, world.sum(*broken.values()), strict=True)
    for name in (name for name, count in counts if count):
        raise nonfinite(speech.path, speech.family.tensors.saved_name(name))


def _rows(count: int, world: World) -> tuple[int, int]:
    """From which row, and to before which, FSDP2 has a process keep of so many: those of torch.chunk."""
    most = -(-count // world.size)
    return min(world.rank * most, count), min((world.rank + 1) * most, count)


def _part_of(weight: Any, rows: Tensor) -> Tensor:
    """A DTensor laid out as another one, of which these are this process's rows."""
    from torch.distributed.tensor import DTensor

    whole = {"shape": weight.shape, "stride": weight.stride()}
    return DTensor.from_local(rows, weight.device_mesh, weight.placements, run_check=False, **whole)


def _outside(speech: SpeechModel) -> set[nn.Parameter]:
    """Weights that a training on cached features does not run: those of a frozen encoder."""
    tensors = [tensor for part in speech.family.audio.cached_parts for tensor in speech.tensors_of(part).values()]
    if any(tensor.requires_grad for tensor in tensors):
        return set()
    return {tensor for tensor in tensors if isinstance(tensor, nn.Parameter)}


def sum_gradients(weights: Sequence[nn.Parameter], world: World) -> None:
    """Of replicated weights, over all processes; in place."""
    if world.size > 1:
        for weight in weights:
            if weight.grad is not None:
                dist.all_reduce(weight.grad)


@torch.no_grad()
def gather(sharded: Sharded, world: World) -> None:
    """Make a sharded model whole again: on the CPU of the first process, while the others keep none of its weights.

    All processes call it. A process that is alone has its model back as it was before, on its device.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in sharded.step.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    whole: dict[Tensor, nn.Parameter] = {}  # a tied weight is gathered once
    for module in sharded.step.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight not in whole and hasattr(weight, "full_tensor"):
                own = weight.full_tensor()
                if world.size > 1:
                    own = own.cpu() if world.first else own.new_empty(0)
                whole[weight] = nn.Parameter(own, requires_grad=weight.requires_grad)
            if weight in whole:
                module.register_parameter(name, whole[weight])
    sharded.undo()
    if world.size > 1:
        sharded.step.cpu()


@dataclass(frozen=True)
class Sharded:
    """A step whose model is sharded, and what its modules were before: their classes and hooks."""

    step: Step
    before: Mapping[nn.Module, tuple[type[nn.Module], Mapping[str, Mapping[Any, Any]]]]

    @classmethod
    def about_to_be(cls, step: Step) -> Sharded:
        def hooks(module: nn.Module) -> dict[str, dict[Any, Any]]:
            return {
                key: dict(value) for key, value in vars(module).items() if "hook" in key and isinstance(value, dict)
            }

        return cls(step, {module: (type(module), hooks(module)) for module in step.modules()})

    def undo(self) -> None:
        """Modules as they were, whatever weights they have now."""
        for module, (kind, hooks) in self.before.items():
            module.__class__ = kind
            for key, value in hooks.items():
                getattr(module, key).clear()
                getattr(module, key).update(value)


def full(value: Tensor) -> Tensor:
    """A number that was computed from sharded tensors, the same on all processes."""
    full_tensor = getattr(value, "full_tensor", None)
    return value if full_tensor is None else full_tensor()
