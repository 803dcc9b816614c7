"""The tensors of a model from its config.json alone: names as transformers saves them, and shapes. No torch.

A family's file has them as tables (`family.Tensors`); tests/models/test_shapes.py compares all of it with transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sordino.errors import FamilyError
from sordino.models import registry
from sordino.models.family import Family, Table
from sordino.models.parts import is_tied, part_of
from sordino.runtime.terminal import quoted

Kind = Literal["linear", "head", "embedding", "other"]
# matrices of which rows are looked up, and one inside torch's own attention, which nothing quantizes
TABLE = re.compile(r"\bembed_\w+\.weight$|_(?:emb|embedding|eos_token|values)\.weight$|\battention\.out_proj\.")


@dataclass(frozen=True)
class Shape:
    """One tensor. kind: linear (the weight of a linear layer but the head), head, embedding, other.

    gguf: llama.cpp's name for it, None for a tensor that is not of the decoder.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    gguf: str | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def part(self) -> str:
        """A key of parts.PARTS."""
        return part_of(self.name)


@dataclass(frozen=True)
class Model:
    """A model as its config describes it. tensors: sorted by name; a tied head is not among them.

    dims: the letters of the family's fields, encoder_layers, decoder_layers, heads, kv_heads, head_dim, Q and K (of the
    widest layer); D, F and M are 0 without an encoder.
    """

    family: Family
    dims: Mapping[str, int]
    tensors: tuple[Shape, ...]
    tied: bool

    @property
    def parameters(self) -> int:
        return count(self.tensors)

    @property
    def window_seconds(self) -> float:
        return self.family.tensors.window_seconds(self.dims)


def known(config: Mapping[str, Any]) -> bool:
    """Whether the shapes of this family's models are written down."""
    model_type = str(config.get("model_type"))
    return model_type in registry.FAMILIES and bool(registry.get(model_type).tensors.tables)


def model(
    config: Mapping[str, Any],
    *,
    vocabulary: int | None = None,
    decoder_layers: int | None = None,
    encoder_layers: int | None = None,
) -> Model:
    """config.json -> the model, or what pruning or trimming would leave of it.

    Raises FamilyError for a family whose tables are not written down or a config that makes no sense.
    """
    family = registry.of_config(config)
    if not family.tensors.tables:
        raise FamilyError(
            f"the shapes of '{family.model_type}' models are not written down.", "Inspect the weights themselves."
        )
    config = family.core(config)
    dims = _dims(family, config)
    changed = {"V": vocabulary, "decoder_layers": decoder_layers, "encoder_layers": encoder_layers}
    dims |= {name: value for name, value in changed.items() if value is not None}
    tied = is_tied(config)
    tensors = [
        Shape(name, shape, kind, family.gguf_name(name))
        for prefix, table in family.tensors.tables.items()
        for name, shape, kind in _rows(prefix, table, dims, config)
        if not (kind == "head" and tied)
    ]
    return Model(family, dims, tuple(sorted(tensors, key=lambda tensor: tensor.name)), tied)


def _rows(
    prefix: str, table: Table, dims: Mapping[str, int], config: Mapping[str, Any]
) -> Iterable[tuple[str, tuple[int, ...], Kind]]:
    """Name, shape and kind of every tensor of a table."""
    layers = dims[table.layers] if table.layers else 0
    own = [{**dims, **(table.per_layer(dims, config, i) if table.per_layer else {})} for i in range(layers)]
    for row in filter(None, table.rows.splitlines()):
        name, *letters = row.split()
        for index, at in enumerate(own) if "#" in name else [(0, dims)]:
            shape = tuple(int(x) if x.isdigit() else at[x] for x in letters)
            if 0 not in shape:
                yield prefix + name.replace("#", str(index)), shape, _kind(name, shape)


def lora(model: Model, rank: int, *, decoder_only: bool = False) -> tuple[Shape, ...]:
    """An adapter of all linear layers, or the decoder's: A (r, in) and B (out, r) of each, named as peft names them."""
    adapter = []
    for tensor in model.tensors:
        live = model.family.tensors.live_name(tensor.name).removesuffix(".weight")
        inside = tensor.part == "decoder" or not decoder_only
        if tensor.kind == "linear" and inside and model.family.tensors.runs(live):
            rows, columns = tensor.shape
            adapter += [Shape(f"base_model.model.{live}.lora_A.weight", (rank, columns), "other")]
            adapter += [Shape(f"base_model.model.{live}.lora_B.weight", (rows, rank), "other")]
    return tuple(adapter)


def count(tensors: Iterable[Shape]) -> int:
    """Elements of all tensors."""
    return sum(tensor.elements for tensor in tensors)


def layer_counts(config: Mapping[str, Any]) -> dict[str, int]:
    """Scope -> number of layers by config.json. Raises FamilyError."""
    family = registry.of_config(config)
    return {scope: _dims(family, family.core(config))[f"{scope}_layers"] for scope in family.stacks}


def _dims(family: Family, config: Mapping[str, Any]) -> dict[str, int]:
    dims = {"encoder_layers": 0, "D": 0, "F": 0, "M": 0}
    for name, (section, key, default) in family.tensors.fields.items():
        place: Any = config
        for part in filter(None, section.split(".")):
            place = place.get(part) if isinstance(place, Mapping) else None
        value = place.get(key) if isinstance(place, Mapping) else None
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            problem = f"config.json: {section}.{key} is {quoted(value, 60)} and not a size."
            raise FamilyError(problem, "Copy the model again.")
        if not value and default != 0 and not name.endswith("_layers"):  # 0 by default: what a model may lack
            raise FamilyError(f"config.json: {section}.{key} is 0.", "Copy the model again.")
        dims[name] = value
    head = dims["head_dim"] or dims["H"] // dims["heads"]
    dims |= {"head_dim": head, "Q": dims["heads"] * head, "K": dims["kv_heads"] * head}
    dims |= family.tensors.letters(config, dims)
    for table in family.tensors.tables.values():
        if table.per_layer and table.layers:
            layers = [table.per_layer(dims, config, i) for i in range(dims[table.layers])]
            dims |= {name: max(layer.get(name, dims[name]) for layer in layers) for name in "QK" if layers}
    return dims


def _kind(name: str, shape: tuple[int, ...]) -> Kind:
    if "lm_head" in name:
        return "head"
    if "embed_tokens" in name:
        return "embedding"
    return "linear" if len(shape) == 2 and name.endswith(".weight") and not TABLE.search(name) else "other"
