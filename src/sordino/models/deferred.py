"""A model that is built before its weights are read, for processes that keep a part of each.

Its weights are on torch's meta device, where they take no memory, until numbers are put in their place: whole, or a
process's own rows (training/sharding.py). Its buffers are there from the start: what no file holds (rotary frequencies,
scales, masks) is computed while the class is built, as in `from_pretrained`; what a file holds is read at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sordino.checkpoint.reading import Checkpoint


@dataclass(frozen=True)
class Deferred:
    """Where the weights of such a model are. names: of a weight or saved buffer in the model -> in the checkpoint;
    device: that they are read to."""

    checkpoint: Checkpoint
    names: Mapping[str, str]
    device: torch.device

    def read(self, name: str, like: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        """A weight by its name in the model, in `like`'s type, or its rows from the first to before the second."""
        stored = self.checkpoint.read(self.names[name], rows)
        # a copy in any case: what is read begins where a byte array does, and kernels like theirs aligned
        return torch.empty(stored.shape, dtype=like.dtype, device=self.device).copy_(stored)

    def fill(
        self,
        model: nn.Module,
        numbers: Callable[[str, nn.Parameter], Tensor] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """Put numbers in the place of every weight that has none yet; a tied one stays one tensor.

        numbers: (name in the model, weight) -> what becomes its data; `read` where left out. only: of these names.
        """
        filled: dict[Tensor, nn.Parameter] = {}
        for prefix, module in model.named_modules():
            for leaf, weight in list(module.named_parameters(recurse=False)):
                name = f"{prefix}.{leaf}" if prefix else leaf
                if weight.device.type != "meta" or (only is not None and name not in only):
                    continue
                if weight not in filled:
                    data = (numbers or self.read)(name, weight)
                    filled[weight] = nn.Parameter(data, requires_grad=weight.requires_grad)
                module.register_parameter(leaf, filled[weight])


def build(model_class: Any, config: Any, dtype: torch.dtype, attention: str | None) -> Any:
    """A model of a transformers class whose weights are on the meta device, and its buffers not."""
    from accelerate import init_empty_weights

    options = {"attn_implementation": attention} if attention else {}
    with init_empty_weights(include_buffers=False):
        model = model_class._from_config(config, dtype=dtype, **options)
    model.tie_weights()  # the context made two weights of a tied one
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()  # buffers once more, as `from_pretrained` does: computed in float32, whatever `dtype` is
    if dtype != torch.float32:
        wide = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
        for name, weight in model.named_parameters():
            if any(re.search(rf"(^|\.){re.escape(part)}(\.|$)", name) for part in wide):
                weight.data = weight.data.float()
    return model


def fill_buffers(model: nn.Module, deferred: Deferred) -> None:
    """Read the saved ones, and have all of them on the device."""
    for prefix, module in model.named_modules():
        for leaf, buffer in list(module.named_buffers(recurse=False)):
            name = f"{prefix}.{leaf}" if prefix else leaf
            setattr(module, leaf, deferred.read(name, buffer) if name in deferred.names else buffer.to(deferred.device))
