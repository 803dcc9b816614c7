"""Inefficiencies: bytes of a checkpoint that serve nothing, seen from names, types and sizes. No tensor is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.checkpoint.reading import Tensor
from sordino.measure.size import COMPANION, FOUR_BIT_STATE, parameters_by_name
from sordino.models.parts import LAYER, decoder_layers, is_tied, part_of

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz"}
TRAINING = re.compile(  # files and directories of Trainer, DeepSpeed, Accelerate and sordino that only training reads
    r"^(?:optimizer.*\.(?:pt|bin|safetensors)|scheduler.*\.(?:pt|bin)|rng_state.*\.pth|random_states.*\.pkl|scaler\.pt"
    r"|training_args\.bin|trainer_state\.json|zero_to_fp32\.py|checkpoint-\d+|global_step\d+|\.state)$"
)
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
NEEDS_32_BITS = re.compile(r"^(?:blk\.\d+\.\w+|output_norm)\.(?:weight|bias)$")  # norms and biases for llama.cpp


@dataclass(frozen=True)
class Finding:
    """kind: a short name; what: in words; bytes: what could go; fix: what to do about it."""

    kind: str
    what: str
    bytes: int
    fix: str


def findings(
    directory: Path | None, files: Sequence[Path], tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[Finding, ...]:
    """All inefficiencies, the largest first. directory: None looks at the tensors alone."""
    everything = [*_wide(tensors, config), *_twice(tensors, config), *_uncounted(tensors, config)]
    if not any(file.name in ADAPTER_FILES for file in files):
        everything += _inside(tensors)
    if directory is not None:
        everything += [*_adapter(directory, files), *_beside(directory, files)]
    return tuple(sorted(everything, key=lambda finding: -finding.bytes))


def is_weight(name: str) -> bool:
    """Whether a tensor is a layer's weight and not a bias, a scale or a table."""
    return name.endswith(".weight")


def _wide(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[Finding]:
    """32-bit tensors where most weights take 16 bits or fewer; or all of them in 32 bits."""
    counts = parameters_by_name(tensors, config) or {n: t.elements for n, t in tensors.items()}
    own = {n: t for n, t in tensors.items() if not COMPANION.search(n) and part_of(n) != "adapter"}
    wide = {
        name: tensor
        for name, tensor in own.items()
        if tensor.dtype in ("F32", "F64") and not (NEEDS_32_BITS.match(name) and len(tensor.shape) == 1)
    }
    saved = sum(tensor.bytes - 2 * tensor.elements for tensor in wide.values())
    if not saved:
        return []
    few = sum(counts.get(name, 0) for name in wide) * 2 < sum(counts.get(name, 0) for name in own)
    if not few:
        what = f"{len(wide)} of {len(own)} tensors are stored in 32 bits"
        return [
            Finding("32-bit", what, saved, "Store the model in 16 bits, e.g. dtype='bfloat16', or `sordino export`.")
        ]
    packed = any(FOUR_BIT_STATE.search(name) for name in tensors)
    where = ", ".join(dict.fromkeys(part_of(n) for n in sorted(wide, key=lambda n: -wide[n].bytes)))
    what = f"{len(wide)} tensors are left in 32 bits in a {'4' if packed else '16'}-bit checkpoint ({where})"
    return [Finding("32-bit leftovers", what, saved, "Cast what is not quantized to bfloat16 before saving.")]


def _twice(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[Finding]:
    """A head stored beside the embedding that config.json ties it to."""
    if not is_tied(config):
        return []
    embeddings = {t.shape for n, t in tensors.items() if is_weight(n) and part_of(n) == "embedding"}
    heads = [t for n, t in tensors.items() if is_weight(n) and part_of(n) == "head" and t.shape in embeddings]
    what = "the head is stored though config.json ties it to the embedding"
    fix = "Leave it out (save_pretrained does), or set tie_word_embeddings: false if it differs."
    return [Finding("tied twice", what, sum(t.bytes for t in heads), fix)] if heads else []


def _uncounted(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[Finding]:
    """Decoder layers beyond the number in config.json, which loading drops without a word."""
    layers = decoder_layers(config)
    if layers is None:
        return []
    extra = {
        n: int(m[1]) for n in tensors if part_of(n) == "decoder" and (m := LAYER.search(n)) and int(m[1]) >= layers
    }
    what = f"{len(set(extra.values()))} decoder layers are stored beyond config.json's num_hidden_layers of {layers}"
    fix = "Pruned by editing config.json? That drops the last layers: use `sordino prune`."
    return [Finding("uncounted layers", what, sum(tensors[n].bytes for n in extra), fix)] if extra else []


def _inside(tensors: Mapping[str, Tensor]) -> list[Finding]:
    """LoRA weights in the same file as the model's."""
    lora = [name for name in tensors if part_of(name) == "adapter"]
    if not lora or len(lora) == len(tensors):
        return []
    if any(".base_layer." in name for name in tensors):
        fix = "Merge it (`sordino merge`), unless it is meant to be switched on and off."
    else:
        fix = "Remove it if it is merged already; stock loading ignores it."
    size = sum(tensors[name].bytes for name in lora)
    return [Finding("adapter", f"an adapter's {len(lora)} tensors are stored among the model's", size, fix)]


def _adapter(directory: Path, files: Sequence[Path]) -> list[Finding]:
    """An adapter in the directory of a whole model."""
    if not any(file.name not in ADAPTER_FILES for file in files):
        return []
    beside = [directory / name for name in ADAPTER_FILES if (directory / name).is_file()]
    if not beside:
        return []
    what = f"{beside[0].name} lies beside whole weights: transformers would apply it to them on loading"
    fix = "Remove it and adapter_config.json if it is merged; merge it if it is not."
    return [Finding("stale adapter", what, _bytes(beside), fix)]


def _beside(directory: Path, files: Sequence[Path]) -> list[Finding]:
    """Other forms of the same weights, and files of training."""
    training, other = [], []
    for entry in sorted(directory.iterdir()):
        if TRAINING.match(entry.name):
            training.append(entry)
        elif entry.is_file() and entry.suffix in WEIGHTS and entry not in files and entry.name not in ADAPTER_FILES:
            other.append(entry)
    beside = []
    if training:
        what = f"training left {_names(training)}"
        beside.append(Finding("training state", what, _bytes(training), "Remove it; using the model needs none of it."))
    if other:
        what = f"{_names(other)}: weights beside those that are loaded ({_names(files)})"
        beside.append(Finding("duplicate weights", what, _bytes(other), "Keep one form of the weights."))
    return beside


def _names(paths: Sequence[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"


def _bytes(paths: Iterable[Path]) -> int:
    inside = (f for path in paths for f in (path.rglob("*") if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in inside if file.is_file())
