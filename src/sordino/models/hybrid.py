"""Open a GGUF export: audio encoder and projector in torch, the decoder in llama.cpp, for translating alone."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sordino.checkpoint.gguf import read_header
from sordino.errors import FamilyError
from sordino.models import devices, llama_cpp, registry
from sordino.models.family import Family
from sordino.models.llama_cpp import GgufDecoder
from sordino.models.speech import SpeechModel, module_at

DECODER_FILE = "decoder.gguf"
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
    family = registry.family_of(path)
    where = torch.device(device) if str(device) != "auto" else devices.default_device()
    floating = dtype if isinstance(dtype, torch.dtype) else devices.default_dtype(dtype, where)
    file = Path(path) / DECODER_FILE
    if not file.is_file():
        raise FamilyError(f"{path} lacks {DECODER_FILE}, its decoder.", "Copy or export the model again.")
    processor = registry.load_processor(family, path)
    config = transformers.AutoConfig.from_pretrained(path)
    options: dict[str, Any] = {"dtype": floating, "device_map": {"": str(where)}, "use_safetensors": True}
    if attention:
        options["attn_implementation"] = attention
    try:
        model, report = getattr(transformers, family.model_class).from_pretrained(
            path, config=_without_decoder(config, family), output_loading_info=True, **options
        )
    except Exception as error:  # safetensors and transformers raise many types for damaged files
        raise FamilyError(f"the weights in {path} do not load: {error}.", "Copy or export the model again.") from error
    outside = tuple(family.parts[part] for part in ("decoder", "embeddings", "head"))
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(outside))
    if missing:
        raise FamilyError(f"{path} lacks {len(missing)} weights, {missing[0]} among them.", "Export the model again.")
    model.eval().requires_grad_(False)
    decoder = GgufDecoder(file, where)
    if decoder.vocabulary != config.get_text_config().vocab_size:
        raise FamilyError(f"{file} and config.json are of different vocabularies.", "Export the model again.")
    scale = float(getattr(model.get_input_embeddings(), "scalar_embed_scale", 1))
    model.set_input_embeddings(Rows(file, floating, where, scale))
    module_at(model, family.parts["decoder"]).norm = nn.Identity()
    model.config = config
    return SpeechModel(family, model, processor, path, decoder)


def _without_decoder(config: Any, family: Family) -> Any:
    """The config with a decoder of no layers and a vocabulary of one, so that nothing is made that llama.cpp holds."""
    small = copy.deepcopy(config)
    del small.quantization_config
    text = small.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 0, 1, 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    resize = family.stacks["decoder"].resize
    for name, value in (resize(text, []) if resize else {}).items():
        setattr(text, name, value)
    small.pad_token_id = 0
    return small
