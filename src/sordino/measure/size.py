"""How large a model is, read from its files' headers alone: no tensor is loaded, no torch imported.

Three numbers that are easily confused are kept apart (figures: Qwen2-Audio-7B in bitsandbytes nf4):

- bytes: what is stored and downloaded;
- stored elements: what model hubs print as "parameters". A byte with two 4-bit weights counts as one element,
  scales and tables count too, so that 8.40 B parameters are printed as 4.95 B;
- logical parameters: the weights of the network, whatever their storage.

bitsandbytes stores a 4-bit weight X as bytes [n, 1] beside X.absmax, X.quant_map,
X.quant_state.bitsandbytes__nf4 and, with double quantization (Dettmers et al., 2023), X.nested_absmax and
X.nested_quant_map; an 8-bit weight keeps its shape beside SCB.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sordino.checkpoint import gguf
from sordino.checkpoint.reading import ENCODER_STEM, STEM, Checkpoint, Tensor, names_of, read_headers
from sordino.config.records import STAGE_FILE
from sordino.errors import ArtifactError
from sordino.layouts import packed
from sordino.models import config_file
from sordino.models.parts import is_tied, part_of
from sordino.runtime import foreign

FOUR_BIT_WEIGHTS_PER_BYTE = 2
FOUR_BIT_STATE = re.compile(r"\.quant_state\.bitsandbytes__(?:nf4|fp4)$")
COMPANION = re.compile(  # beside quantized weights; none of them is a parameter of the network
    r"(?:\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+|SCB|weight_format)"
    r"|(?<=\.weight)_(?:scale|shape|zero_point|g_idx)|^rope_freqs\.weight)$"  # the last is llama.cpp's own table
)


@dataclass(frozen=True)
class Size:
    """What a model directory weighs.

    weights_bytes: safetensors files that `from_pretrained` loads, an adapter in the same directory included.
    directory_bytes: all files of the directory itself (config, tokenizer, ... too), not its subdirectories; without
    hidden ones and stage.json, which tells how long the work took and is of another length each time.
    stored_elements: sum over the headers. logical_parameters: weights of the network, tied ones once, the
    adapter's included; None where config.json names a quantization whose packing is not known here.
    bytes_by_dtype, bytes_by_part: tensor data (without headers); parts are the keys of PARTS.
    files: the weights files counted.
    """

    weights_bytes: int
    directory_bytes: int
    stored_elements: int
    logical_parameters: int | None
    bytes_by_dtype: Mapping[str, int]
    bytes_by_part: Mapping[str, int]
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values that json.dumps takes; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Size:
        """The Size that `to_json` wrote."""
        return cls(**{**record, "files": tuple(record["files"])})


def measure(path: Path) -> Size:
    """Size of a model directory or a peft adapter directory.

    Raises ArtifactError where it holds no safetensors, a shard is missing or a file is truncated or damaged.
    """
    if not path.is_dir():
        raise ArtifactError(f"there is no model directory {path}.", "Run the stage that makes it.")
    files = weights_files(path)
    tensors = headers(files)
    return Size(
        weights_bytes=sum(file.stat().st_size for file in files),
        directory_bytes=sum(file.stat().st_size for file in path.iterdir() if file.is_file() and _counts(file)),
        stored_elements=sum(tensor.elements for tensor in tensors.values()),
        logical_parameters=logical_parameters(tensors, read_json(path / "config.json")),
        bytes_by_dtype=_bytes_by(tensors, lambda name: tensors[name].dtype),
        bytes_by_part=_bytes_by(tensors, part_of),
        files=tuple(file.name for file in files),
    )


def _counts(file: Path) -> bool:
    return not file.name.startswith(".") and file.name != STAGE_FILE


def together(first: Size, second: Size) -> Size:
    """Two directories that only work together, such as an adapter and its base."""

    def added(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
        return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}

    counted = first.logical_parameters is not None and second.logical_parameters is not None
    return Size(
        weights_bytes=first.weights_bytes + second.weights_bytes,
        directory_bytes=first.directory_bytes + second.directory_bytes,
        stored_elements=first.stored_elements + second.stored_elements,
        logical_parameters=(first.logical_parameters or 0) + (second.logical_parameters or 0) if counted else None,
        bytes_by_dtype=added(first.bytes_by_dtype, second.bytes_by_dtype),
        bytes_by_part=added(first.bytes_by_part, second.bytes_by_part),
        files=first.files + second.files,
    )


def weights_files(path: Path) -> tuple[Path, ...]:
    """The files loading reads: model.safetensors or its index's shards, adapter_model.safetensors, and the GGUF file
    that config.json names, with the encoder's beside it.

    A directory with neither counts every safetensors file in it. Raises ArtifactError for none, and for shards that
    are lost, damaged or not of one model.
    """
    adapter = path / "adapter_model.safetensors"
    stem = next(
        (stem for stem in (STEM, ENCODER_STEM) if any((path / name).is_file() for name in names_of(stem))), None
    )
    if stem:
        files = list(Checkpoint.open(path, stem).files)
    else:
        files = sorted(file for file in path.glob("*.safetensors") if file != adapter)
    if adapter.is_file():
        files.append(adapter)
    quantization = read_json(path / "config.json").get("quantization_config") or {}
    if quantization.get("quant_method") == config_file.GGUF:
        decoder = quantization["file"]
        if not (path / decoder).is_file():
            raise ArtifactError(f"{path / decoder} is missing, and config.json needs it.", "Copy the model again.")
        files.append(path / decoder)
    if not files:
        raise ArtifactError(f"{path} holds no safetensors weights.", "Save the model with safetensors.")
    return tuple(files)


def headers(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of several files. Raises ArtifactError for a damaged one and for a tensor that two of them hold."""
    files = list(files)
    tensors = read_headers(file for file in files if file.suffix != config_file.GGUF_SUFFIX)
    for file in files:
        if file.suffix == config_file.GGUF_SUFFIX:
            tensors |= gguf.read_header(file).tensors
    return tensors


def logical_parameters(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> int | None:
    """Weights of the network from the headers of its files and its config.json ({} where there is none).

    A head stored beside the embedding it is tied to counts once. None for a quantization other than bitsandbytes'
    and compressed-tensors'.
    """
    counts = parameters_by_name(tensors, config)
    if counts is None:
        return None
    total = sum(counts.values())
    if is_tied(config):
        weights = {name: part_of(name) for name in counts if name.endswith(".weight")}
        if "embedding" in weights.values():
            total -= sum(counts[name] for name, part in weights.items() if part == "head")
    return total


def parameters_by_name(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, int] | None:
    """Weights that each stored tensor stands for; scales and tables are not in it, a packed 4-bit byte counts two."""
    if packed.is_packed(config):
        widths = packed.widths(tensors, config)
        own = [name for name in tensors if not COMPANION.search(name)]
        return None if widths is None else {n: widths[n][1] if n in widths else tensors[n].elements for n in own}
    method = (config.get("quantization_config") or {}).get("quant_method", "bitsandbytes")
    if str(method) not in ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit", "gguf"):
        return None
    halves = {FOUR_BIT_STATE.sub("", name) for name in tensors if FOUR_BIT_STATE.search(name)}
    return {
        name: FOUR_BIT_WEIGHTS_PER_BYTE * tensor.bytes if name in halves else tensor.elements
        for name, tensor in tensors.items()
        if not COMPANION.search(name)
    }


def _bytes_by(tensors: Mapping[str, Tensor], key: Callable[[str], str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        counts[key(name)] += tensor.bytes
    return dict(counts.most_common())


def read_json(file: Path, *, required: bool = False) -> dict[str, Any]:
    """A config.json; {} where there is no such file and it is not required. Raises ArtifactError."""
    if not os.path.lexists(file):
        if required:
            raise ArtifactError(f"there is no file {file}.", "Give a model's config.json.")
        return {}
    config = foreign.read_json(file, raises=ArtifactError, remedy="Copy or make the model again.", finite=False)
    config_file.check(config, str(file), raises=ArtifactError)
    return config
