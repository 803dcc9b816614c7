"""How many weights a compressed-tensors checkpoint's packed tensors stand for, from headers and config.json. No torch.

X.weight_packed holds 32-bit words and not columns; config.json says how many bits a weight has and how many of them
share a scale, by groups of modules: names, expressions ("re:...") or class names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sordino.checkpoint.reading import Tensor

PACKED = ".weight_packed"
WORD = 32  # bits


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether config.json is of a compressed-tensors checkpoint."""
    return (config.get("quantization_config") or {}).get("quant_method") == "compressed-tensors"


def widths(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, tuple[int, int]] | None:
    """Stored weight, packed or in whole bytes -> (bits a weight, weights). None where config.json does not say."""
    groups = (config.get("quantization_config") or {}).get("config_groups") or {}
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        return None
    counts = {}
    for name, tensor in tensors.items():
        scale = tensors.get(f"{name.removesuffix('_packed')}_scale")
        if not name.endswith(PACKED) and scale is None:
            continue
        try:
            settings = _settings(name.removesuffix("_packed").removesuffix(".weight"), groups)
            bits, size = int(settings["num_bits"]), settings.get("group_size")
            rows, words = tensor.shape
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, re.error):
            return None
        if not 0 < bits <= WORD:
            return None
        if not name.endswith(PACKED):
            counts[name] = (bits, tensor.elements)
        elif isinstance(size, int) and size > 0:
            if scale is None or len(scale.shape) != 2:
                return None
            counts[name] = (bits, rows * scale.shape[1] * size)
        else:
            counts[name] = (bits, rows * (words * WORD // bits))
    return counts


def _settings(module: str, groups: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a module's weight is stored: the group that names it, else the only one, or the one of all linear layers."""
    told = [(group.get("targets") or [], group.get("weights") or {}) for group in groups.values()]
    for targets, weights in told:
        if any(t == module or (t.startswith("re:") and re.match(t[3:], module)) for t in targets):
            return dict(weights)
    classes = [weights for targets, weights in told if "Linear" in targets]
    return dict(classes[0] if classes else told[0][1] if len(told) == 1 else {})
