"""A model in a mixture of widths: its parts, what is measured of them, the bytes of every choice. Shapes alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from sordino.checkpoint.writing import HEADER_ALIGNMENT
from sordino.layouts import tables
from sordino.models.parts import LAYER
from sordino.models.shapes import Model, Shape
from sordino.pruning.layer import Layer
from sordino.quantization.allocation import Drop, Option
from sordino.quantization.sensitivity import Change, Cost, part_of_weight

KEPT = 16  # bits of what is not rounded
OFFSETS = '"data_offsets":[{0},{0}]'  # of a tensor in a file's header


def parts(model: Model) -> dict[str, list[Shape]]:
    """Part -> its weights as stored."""
    by_part: dict[str, list[Shape]] = {}
    for tensor in model.tensors:
        part = part_of_weight(tensor.name)
        if part and tensor.kind != "other":
            by_part.setdefault(part, []).append(tensor)
    return by_part


def changes(model: Model, layers: int = 0) -> list[Change]:
    """All that is measured. layers: ranked ones that may be dropped.

    A head tied to its embedding keeps both in 16 bits: no format packs them together.
    """
    rounded = [part for part in parts(model) if not (model.tied and part == "embedding")]
    widths = {"embedding": (tables.EMBEDDING_BITS,)}
    changes = [Change(part, bits) for part in rounded for bits in widths.get(part, tables.PACKED_BITS)]
    return changes + [Change(dropped=count + 1) for count in range(layers)]


def problem(
    model: Model, costs: Mapping[Change, Cost], order: Sequence[Layer] = ()
) -> tuple[dict[str, list[Option]], int, list[Drop]]:
    """Options of the parts, bytes of what is never rounded, and the layers that may be dropped, in their order."""
    weights = parts(model)
    options = {part: [_option(model, tensors, KEPT, 0.0)] for part, tensors in weights.items()}
    for change, cost in costs.items():
        if change.part:
            options[change.part].append(_option(model, weights[change.part], change.bits, cost.value))
    rounded = {tensor.name for tensors in weights.values() for tensor in tensors}
    others = [tensor for tensor in model.tensors if tensor.name not in rounded]
    drops = []
    for count, layer in enumerate(order, 1):
        gone = tuple(f"decoder.{layer.index}.{half}" for half in ("attention", "mlp"))
        beside = [t for t in others if t.part == "decoder" and (m := LAYER.search(t.name)) and m[1] == str(layer.index)]
        drops.append(
            Drop(str(layer), gone, _bytes(model, tables.mixed(beside, {})), costs[Change(dropped=count)].value)
        )
    padding = HEADER_ALIGNMENT
    return options, _bytes(model, tables.mixed(others, {})) + tables.safetensors_bytes({}) + padding, drops


def _option(model: Model, tensors: Sequence[Shape], bits: int, cost: float) -> Option:
    stored = tables.mixed(tensors, {tensor.name: bits for tensor in tensors})
    return Option(bits, _bytes(model, stored), cost)


def _bytes(model: Model, tensors: tables.Stored) -> int:
    """Of tensors in a file and of their entries in its header, whose offsets are taken to be as long as can be."""
    offsets = OFFSETS.format("9" * len(str(2 * model.parameters)))
    entries = (
        f'"{name}":{{"dtype":"{t.dtype}","shape":{json.dumps(t.shape, separators=(",", ":"))},{offsets}}},'
        for name, t in tensors.items()
    )
    return tables.data_bytes(tensors) + sum(map(len, entries))


def by_name(model: Model, bits: Mapping[str, int], kept: Sequence[int]) -> dict[str, int]:
    """Bits by part -> by the name of the stored weight, 16 kept out.

    kept: the decoder layers that `model` has, by their number in the model whose parts they are.
    """
    widths: dict[str, int] = {}
    for part, tensors in parts(model).items():
        stack, _, rest = part.partition(".")
        index, _, half = rest.partition(".")
        width = bits[f"decoder.{kept[int(index)]}.{half}" if stack == "decoder" else part]
        widths |= {tensor.name: width for tensor in tensors if width != KEPT}
    return widths
