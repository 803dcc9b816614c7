"""Open a GGUF export: audio encoder and projector in torch, the decoder in llama.cpp, for translating alone."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sordino.checkpoint.finite import refuse_nonfinite
from sordino.checkpoint.gguf import read_header
from sordino.checkpoint.reading import ENCODER_STEM, STEM, Checkpoint, names_of
from sordino.errors import FamilyError, is_out_of_memory, reason
from sordino.models import devices, llama_cpp, processor_check, registry, stored
from sordino.models.family import Family
from sordino.models.llama_cpp import GgufDecoder
from sordino.models.speech import SpeechModel, module_at

DECODER_FILE = "decoder.gguf"  # as it is written
EMBEDDING = "token_embd.weight"


def require_gguf() -> None:
    """Raise FamilyError where the package that reads and writes GGUF is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise FamilyError("GGUF models need the package gguf, which is not installed.", llama_cpp.EXTRA + ".")


class Rows(nn.Module):
    """The embedding in a GGUF file, read and unpacked a row at a time. ids (...) -> (..., H) in float32.

    scale: what the model multiplies its embedding by. llama.cpp multiplies rows that it takes by their ids, and none
    that it is given.
    """

    def __init__(self, file: Path, dtype: torch.dtype, device: torch.device, scale: float) -> None:
        super().__init__()
        self.scale = scale
        stored = read_header(file).tensors[EMBEDDING]
        import gguf

        self.kind = gguf.GGMLQuantizationType[stored.dtype]
        shape = (stored.shape[0], stored.bytes // stored.shape[0])
        self.packed = np.memmap(file, np.uint8, "r", stored.start, shape)
        # its type is that in which audio features enter, as with an embedding of torch's
        self.weight = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        import gguf

        distinct, where = torch.unique(ids.cpu(), return_inverse=True)
        rows = gguf.quants.dequantize(self.packed[distinct.numpy()], self.kind)
        return torch.from_numpy(rows).to(ids.device)[where.to(ids.device)] * self.scale


def load(
    path: str,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str | None = None,
    revision: str | None = None,
) -> SpeechModel:
    """A directory that formats/gguf.py wrote. dtype: of encoder and projector. Raises FamilyError, ArtifactError."""
    import transformers

    require_gguf()
    llama_cpp.Library.get()
    directory = Path(path)
    family = registry.family_of(path)
    where = torch.device(device) if str(device) != "auto" else devices.default_device()
    floating = dtype if isinstance(dtype, torch.dtype) else devices.default_dtype(dtype, where)
    file = directory / registry.read_config(path)["quantization_config"]["file"]
    if not file.is_file():
        raise FamilyError(f"{path} lacks {file.name}, its decoder.", "Copy or export the model again.")
    processor = registry.load_processor(family, path)
    whole = stored.skeleton(family, directory)
    config = whole.config
    options: dict[str, Any] = {"dtype": floating, "device_map": {"": str(where)}}
    if attention:
        options["attn_implementation"] = attention
    model_class = getattr(transformers, family.model_class)
    weights = _encoder(directory)
    try:
        small = _without_decoder(config, family)
        model, report = model_class.from_pretrained(
            None, config=small, state_dict=weights, output_loading_info=True, **options
        )
    except Exception as error:  # transformers raises many types for odd weights
        if is_out_of_memory(error):
            raise
        problem = f"the weights in {path} do not load ({reason(error)})."
        raise FamilyError(problem, "Copy or export the model again.") from error
    outside = tuple(family.parts[part] for part in ("decoder", "embeddings", "head"))
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(outside))
    if missing:
        raise FamilyError(f"{path} lacks {len(missing)} weights, {missing[0]} among them.", "Export the model again.")
    refuse_nonfinite(path, model.state_dict().items())
    model.eval().requires_grad_(False)
    decoder = GgufDecoder(file, where)
    if decoder.vocabulary != config.get_text_config().vocab_size:
        raise FamilyError(f"{file} and config.json are of different vocabularies.", "Export the model again.")
    scale = float(getattr(model.get_input_embeddings(), "scalar_embed_scale", 1))
    model.set_input_embeddings(Rows(file, floating, where, scale))
    module_at(model, family.parts["decoder"]).norm = nn.Identity()
    model.config, model.generation_config = config, whole.generation_config
    speech = SpeechModel(family, model, processor, path, decoder)
    processor_check.check(speech)
    return speech


def _encoder(directory: Path) -> dict[str, Tensor]:
    """What torch runs of it, by the names in the files."""
    old = any((directory / name).is_file() for name in names_of(STEM))  # as exports called it once
    checkpoint = Checkpoint.open(directory, STEM if old else ENCODER_STEM)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def _without_decoder(config: Any, family: Family) -> Any:
    """The config with a decoder of no layers and a vocabulary of one, so that nothing is made that llama.cpp holds."""
    small = without_layers(config, family)
    text = small.get_text_config()
    text.vocab_size, text.pad_token_id = 1, 0
    small.pad_token_id = 0
    return small


def without_layers(config: Any, family: Family) -> Any:
    """The config with a decoder of no layers, for a decoder that runs elsewhere."""
    small = copy.deepcopy(config)
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    text = small.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    resize = family.stacks["decoder"].resize
    for name, value in (resize(text, []) if resize else {}).items():
        setattr(text, name, value)
    return small
