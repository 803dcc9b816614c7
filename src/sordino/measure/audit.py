"""What a checkpoint consists of and its inefficiencies, from headers, names and configs alone. No torch.

model = audit(Path("model"))          # a directory, or one .safetensors or .gguf file
model.torch_save_bytes                # the measure of the IWSLT compression track
[f.what for f in model.findings]      # 'the head is stored though it is tied to the embedding', ...
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sordino.checkpoint.reading import Tensor
from sordino.errors import ArtifactError
from sordino.layouts import packed
from sordino.measure import inefficiencies
from sordino.measure.inefficiencies import Finding
from sordino.measure.size import (
    COMPANION,
    FOUR_BIT_STATE,
    headers,
    logical_parameters,
    parameters_by_name,
    read_json,
    weights_files,
)
from sordino.measure.torch_save import STORAGES, torch_save_bytes
from sordino.models import registry
from sordino.models.family import Tensors
from sordino.models.parts import HEAD, LAYER, is_tied, part_of


@dataclass(frozen=True)
class Share:
    """Some of the tensors. parameters: None where the quantization's packing is not known."""

    tensors: int
    parameters: int | None
    elements: int
    bytes: int


@dataclass(frozen=True)
class Audit:
    """weights_bytes: the files that loading reads; directory_bytes: everything in the directory, subdirectories too.

    torch_save_bytes: of torch.save(model.state_dict()); None where a type is stored that torch saves otherwise.
    parts: encoder, projector, embedding, decoder.0, decoder.1, ..., head, adapter, other.
    storage: by type and quantization: 'nf4 weights', 'nf4 scales and tables', 'BF16', ...
    """

    path: str
    files: tuple[str, ...]
    parameters: int | None
    stored_elements: int
    weights_bytes: int
    directory_bytes: int
    torch_save_bytes: int | None
    parts: Mapping[str, Share]
    storage: Mapping[str, Share]
    findings: tuple[Finding, ...]

    @property
    def wasted_bytes(self) -> int:
        return sum(finding.bytes for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps."""
        return asdict(self) | {"wasted_bytes": self.wasted_bytes}


def audit(path: Path) -> Audit:
    """Read the headers of a model directory, an adapter directory or one .safetensors or .gguf file.

    Raises ArtifactError where there is none, a shard is missing or a file is damaged.
    """
    directory = path if path.is_dir() else path.parent
    if path.is_dir():
        files = weights_files(path)
    elif path.is_file():
        files = (path,)
    else:
        raise ArtifactError(f"there is no model {path}.", "Give a model directory, a .safetensors or a .gguf file.")
    config = read_json(directory / "config.json")
    tensors = headers(files)
    everything = [f for f in directory.rglob("*") if f.is_file()] if path.is_dir() else list(files)
    saveable = all(tensor.dtype in STORAGES for tensor in tensors.values())
    return Audit(
        path=str(path),
        files=tuple(file.name for file in files),
        parameters=logical_parameters(tensors, config),
        stored_elements=sum(tensor.elements for tensor in tensors.values()),
        weights_bytes=sum(file.stat().st_size for file in files),
        directory_bytes=sum(file.stat().st_size for file in everything),
        torch_save_bytes=_state_dict_bytes(tensors, config) if saveable else None,
        parts=shares(tensors, config, {name: part_with_layer(name) for name in tensors}),
        storage=shares(tensors, config, _storage(tensors, config)),
        findings=inefficiencies.findings(directory if path.is_dir() else None, files, tensors, config),
    )


def _state_dict_bytes(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """Of torch.save(model.state_dict()): the tensors by their names in the model, and all of its modules' versions."""
    names = registry.tensors_of(config)
    live = {names.live_name(name): tensor for name, tensor in tensors.items()}
    aliases = {alias: names.live_name(of) for alias, of in _tied(tensors, config).items()}
    state = {name: live[name] for name in sorted(live)}
    return torch_save_bytes(state, aliases=aliases, module=True, silent=_silent(names, state))


def _silent(names: Tensors, state: Iterable[str]) -> list[str]:
    """The model's modules without tensors, each where the module around it has some."""
    there = {name[:end] for name in state for end in _dots(name)}
    modules: dict[str, None] = {}
    for kind in names.silent:
        before, _, after = kind.rpartition("#")
        layer = re.compile(re.escape(before) + r"\d+")
        layers = sorted(module for module in there if layer.fullmatch(module)) if before else [""]
        modules |= {f"{module}{after}": None for module in layers if f"{module}{after}".rpartition(".")[0] in there}
    return list(modules)


def _dots(name: str) -> list[int]:
    return [i for i, character in enumerate(name) if character == "."]


def shares(tensors: Mapping[str, Tensor], config: Mapping[str, Any], group: Mapping[str, str]) -> dict[str, Share]:
    """The tensors' groups, decoder layers by number, in the order of a forward pass."""
    counts = parameters_by_name(tensors, config)
    names: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        names[group[name]].append(name)
    return {
        key: Share(
            tensors=len(names[key]),
            parameters=None if counts is None else sum(counts.get(name, 0) for name in names[key]),
            elements=sum(tensors[name].elements for name in names[key]),
            bytes=sum(tensors[name].bytes for name in names[key]),
        )
        for key in sorted(names, key=_order)
    }


def part_with_layer(name: str) -> str:
    """As parts.part_of, decoder layers apart: 'decoder.7'."""
    part = part_of(name)
    layer = LAYER.search(name)
    return f"decoder.{layer[1]}" if part == "decoder" and layer else part


def _order(key: str) -> tuple[int, int, str]:
    order = ("audio_encoder", "projector", "embedding", "decoder", "head", "other", "adapter")
    name, _, index = key.partition(".")
    return (order.index(name) if name in order else len(order), int(index) if index.isdigit() else 0, key)


def _storage(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str]:
    """Tensor -> its type, or the quantization it belongs to."""
    if packed.is_packed(config) and (widths := packed.widths(tensors, config)) is not None:
        bits = {name.removesuffix("_packed"): width for name, (width, _) in widths.items()}
        kinds = {name: f"{bits[name.removesuffix('_packed')]}-bit weights" for name in widths}
        for name, tensor in tensors.items():
            owner = COMPANION.sub("", name)
            if name not in kinds:
                kinds[name] = f"{bits[owner]}-bit scales and shapes" if owner in bits else tensor.dtype
        return kinds
    four = {FOUR_BIT_STATE.sub("", n): n.rsplit("__", 1)[1] for n in tensors if FOUR_BIT_STATE.search(n)}
    eight = {n.removesuffix("SCB") + "weight" for n in tensors if n.endswith(".SCB")}
    kinds = {}
    for name, tensor in tensors.items():
        owner = COMPANION.sub("", name)
        if owner != name:
            kinds[name] = f"{four.get(owner, 'int8')} scales and tables"
        else:
            kinds[name] = f"{four[name]} weights" if name in four else "int8 weights" if name in eight else tensor.dtype
    return kinds


def _tied(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str]:
    """The head that a state dict holds beside the embedding it is tied to, where the file leaves it out."""
    embeddings = [name for name in tensors if inefficiencies.is_weight(name) and part_of(name) == "embedding"]
    if not is_tied(config) or not embeddings or any(part_of(name) == "head" for name in tensors):
        return {}
    return {HEAD: embeddings[0]}
