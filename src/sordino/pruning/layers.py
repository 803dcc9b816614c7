"""Layer surgery: views of a model without some layers, and pruning for good.

Taking a layer out of the list is the small part. Every remaining layer must get its new index (the cache is
addressed by it), and every copy of the configuration must count and list the layers that are left; otherwise
cached generation breaks or the saved model does not load. One function does all of it, for views and for good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from sordino.models.family import Scope, Stack
from sordino.models.registry import sub_config
from sordino.models.speech import SpeechModel, module_at
from sordino.pruning.layer import check_keep, check_removable


def _configs(speech: SpeechModel, scope: Scope) -> list[Any]:
    """Every distinct object that is a copy of this scope's sub-config: the model's and those modules hold."""
    own = sub_config(speech.model.config, speech.family.stacks[scope].config)
    held = (m.config for m in speech.model.modules() if isinstance(getattr(m, "config", None), type(own)))
    return list({id(c): c for c in (own, *held)}.values())


def _install(speech: SpeechModel, scope: Scope, layers: Sequence[nn.Module]) -> None:
    """Make `layers` the layer list: modules and their indices."""
    module_list, stack = speech.layers(scope), speech.family.stacks[scope]
    if stack.counted:
        setattr(module_at(speech.model, stack.path.rpartition(".")[0]), stack.counted, len(layers))
    module_list._modules.clear()  # the same ModuleList object: others may hold it
    module_list.extend(layers)
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index  # type: ignore[assignment]  # a plain attribute of attention modules


def sizes(stack: Stack, config: Any, keep: Sequence[int]) -> dict[str, Any]:
    """What a sub-config says of the layers `keep`, in the order in which it is set: the count, the lists with one item
    a layer, and the family's own."""
    lists = {name: list(items) for name in stack.lists if (items := getattr(config, name, None)) is not None}
    cut = {name: [items[i] for i in keep] for name, items in lists.items()}
    return {stack.count: len(keep), **cut, **(stack.resize(config, keep) if stack.resize else {})}


def _set(config: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(config, name, value)


@contextmanager
def only(speech: SpeechModel, scope: Scope, keep: Sequence[int]) -> Iterator[SpeechModel]:
    """A view: inside the block the model runs with only the layers `keep`; afterwards it is exactly as before.

    No weights are copied. Restores also after an exception.
    """
    before, stack = list(speech.layers(scope)), speech.family.stacks[scope]
    kept = check_keep(keep, len(before), scope)
    whole = [(config, sizes(stack, config, range(len(before)))) for config in _configs(speech, scope)]
    try:
        prune(speech, scope, kept)
        yield speech
    finally:
        _install(speech, scope, before)
        for config, values in whole:
            _set(config, values)


def prune(speech: SpeechModel, scope: Scope, keep: Sequence[int]) -> None:
    """Drop every layer but `keep` (indices in the present numbering), for good.

    Raises RecipeError for an index out of range or twice, for an empty list, and for layers that the family cannot do
    without.
    """
    before, stack = list(speech.layers(scope)), speech.family.stacks[scope]
    kept = check_keep(keep, len(before), scope)
    configs = _configs(speech, scope)
    check_removable(speech.family, scope, configs[0], len(before), kept)
    for config in configs:
        _set(config, sizes(stack, config, kept))
    _install(speech, scope, [before[i] for i in kept])
