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

from sordino.models.base import Scope, SpeechModel
from sordino.pruning.layer import check_keep


def _configs(speech: SpeechModel, scope: Scope) -> list[Any]:
    """Every distinct object that is a copy of this scope's sub-config: the model's and those modules hold."""
    name, _ = speech.family.layer_counts[scope]
    own = getattr(speech.model.config, name)
    held = (m.config for m in speech.model.modules() if isinstance(getattr(m, "config", None), type(own)))
    return list({id(c): c for c in (own, *held)}.values())


def _install(speech: SpeechModel, scope: Scope, layers: Sequence[nn.Module], lists: Mapping[str, Any]) -> None:
    """Make `layers` the layer list: modules, their indices, and the counts and per-layer lists of the configs."""
    module_list = speech.layers(scope)
    module_list._modules.clear()  # the same ModuleList object: others may hold it
    module_list.extend(layers)
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index  # type: ignore[assignment]  # a plain attribute of attention modules
    _, count = speech.family.layer_counts[scope]
    for config in _configs(speech, scope):
        setattr(config, count, len(layers))
        for name, value in lists.items():
            setattr(config, name, value)


def _lists(speech: SpeechModel, scope: Scope) -> dict[str, list[Any]]:
    """The sub-config's lists with one item per layer, those that are set."""
    name, _ = speech.family.layer_counts[scope]
    config = getattr(speech.model.config, name)
    found = {field: getattr(config, field, None) for field in speech.family.layer_lists[scope]}
    return {field: list(value) for field, value in found.items() if value is not None}


@contextmanager
def only(speech: SpeechModel, scope: Scope, keep: Sequence[int]) -> Iterator[SpeechModel]:
    """A view: inside the block the model runs with only the layers `keep`; afterwards it is exactly as before.

    No weights are copied. Restores also after an exception.
    """
    before = list(speech.layers(scope))
    lists = _lists(speech, scope)
    kept = check_keep(keep, len(before), scope)
    try:
        _install(speech, scope, [before[i] for i in kept], {k: [v[i] for i in kept] for k, v in lists.items()})
        yield speech
    finally:
        _install(speech, scope, before, lists)


def prune(speech: SpeechModel, scope: Scope, keep: Sequence[int]) -> None:
    """Drop every layer but `keep` (indices in the present numbering), for good."""
    before = list(speech.layers(scope))
    lists = _lists(speech, scope)
    kept = check_keep(keep, len(before), scope)
    _install(speech, scope, [before[i] for i in kept], {k: [v[i] for i in kept] for k, v in lists.items()})
