"""A LoRA adapter that belongs to a model and lies in its directory, merged as weights are read: Granite Speech 3.3's,
and Phi-4-multimodal's for speech.

W + B A alpha / r (arXiv:2106.09685), summed in float32 and rounded once to the weights' type, in blocks of rows that
are the same however a weight is read, so that a loaded model and a copy from file to file have the same bytes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.checkpoint.reading import CHUNK_BYTES, Checkpoint, read_header
from sordino.errors import ArtifactError, FamilyError
from sordino.models import config_file, registry
from sordino.models.family import Family
from sordino.runtime import foreign

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = config_file.ADAPTER_CONFIG, config_file.ADAPTER_WEIGHTS
PREFIX = "base_model.model."  # of peft's names
ROWS = 1024  # merged at once
# settings of peft that make an adapter more than A and B: value where they do not
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []), "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None), "fan_in_fan_out": (False, None), "lora_bias": (False, None), "peft_type": ("LORA",),
    "trainable_token_indices": (None,), "use_qalora": (False, None),
}  # fmt: skip


@dataclass(frozen=True)
class Merged(Checkpoint):
    """factors: stored weight -> its A (r, in) and B (out, r); scale: alpha / r, or alpha / sqrt(r)."""

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float

    def as_stored(self, name: str) -> bool:
        return name not in self.factors

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        import torch

        if self.as_stored(name):
            return super().read(name, rows)
        count = self.tensors[name].shape[0]
        first, last = rows or (0, count)
        down, up = self.factors[name]
        found = []
        for start in range(first // ROWS * ROWS, last, ROWS):
            end = min(start + ROWS, count)
            weight = super().read(name, (start, end))
            block = weight.float() + up[start:end] @ down * self.scale
            found.append(block[max(first - start, 0) : last - start].to(weight.dtype))
        return torch.cat(found)

    def chunks(self, name: str, size: int = CHUNK_BYTES) -> Iterator[bytearray]:
        if self.as_stored(name):
            yield from super().chunks(name, size)
            return
        import torch

        rows = self.tensors[name].shape[0]
        for start in range(0, rows, ROWS):
            block = self.read(name, (start, min(start + ROWS, rows)))
            yield bytearray(block.contiguous().view(torch.uint8).numpy().tobytes())


def open_checkpoint(family: Family, directory: Path) -> Checkpoint:
    """A directory's weights, with the adapter that belongs to them.

    Raises ArtifactError for damaged files, FamilyError for an adapter that is more than A and B or does not fit.
    """
    plain = Checkpoint.open(directory)
    if not registry.owns_adapter(registry.read_config(str(directory))):
        return plain
    place = directory / family.adapter_folder
    config = foreign.read_json(place / CONFIG, raises=FamilyError, required={"r": int, "lora_alpha": (int, float)})
    other = sorted(name for name, usual in PLAIN.items() if name in config and config[name] not in usual)
    if other:
        raise FamilyError(
            f"{place / CONFIG}: an adapter with {other[0]} = {config[other[0]]!r} cannot be merged here.",
            "Merge it with peft (merge_and_unload), and give the result.",
        )
    rank, alpha = config["r"], float(config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    factors = _factors(family, plain, place / WEIGHTS, rank)
    return Merged(plain.directory, plain.files, plain.tensors, plain.file_of, factors, scale)


def _factors(family: Family, plain: Checkpoint, file: Path, rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    from safetensors.torch import load_file

    shapes = {name: tensor.shape for name, tensor in read_header(file).items()}  # refuses damaged files by name
    stored = {family.tensors.live_name(name): name for name in plain.tensors}
    pairs: dict[str, dict[str, str]] = {}
    for name in shapes:
        module, _, kind = name.removeprefix(PREFIX).rpartition(".lora_")
        weight = stored.get(family.tensors.live_name(f"{module}.weight"))
        if weight is None or kind not in ("A.weight", "B.weight"):
            raise FamilyError(f"{file}: '{name}' has no place in the model beside it.", "Copy the model again.")
        pairs.setdefault(weight, {})[kind[0]] = name
    for weight, pair in pairs.items():
        rows, columns = plain.tensors[weight].shape
        if {side: shapes[name] for side, name in pair.items()} != {"A": (rank, columns), "B": (rows, rank)}:
            raise ArtifactError(f"{file} does not fit '{weight}' of {rows} x {columns}.", "Copy the model again.")
    tensors = load_file(file)
    return {w: (tensors[pair["A"]].float(), tensors[pair["B"]].float()) for w, pair in pairs.items()}


def put_in(family: Family, model: Any, checkpoint: Checkpoint) -> None:
    """Replace a loaded model's weights by the merged ones, and say so in its config."""
    import torch

    if isinstance(checkpoint, Merged):
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in checkpoint.factors:
                parameters[family.tensors.live_name(name)].copy_(checkpoint.read(name))
    if family.adapter_flag:
        setattr(model.config, family.adapter_flag, False)


@contextmanager
def without_adapter(checkpoint: Checkpoint | None, path: str) -> Iterator[str]:
    """A path to load a model from: where an adapter lies beside it, a directory of links to everything else, since
    transformers would put the adapter into the model as layers of their own."""
    if not isinstance(checkpoint, Merged):
        yield path
        return
    with tempfile.TemporaryDirectory() as links:
        for file in checkpoint.directory.iterdir():
            if file.name not in (CONFIG, WEIGHTS):
                (Path(links) / file.name).symlink_to(file.resolve())
        yield links
