"""GGUF exports of the pico models, and their decoders read back."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from sordino.checkpoint.gguf import read_header
from sordino.formats.gguf import heads_of
from sordino.models.hybrid import DECODER_FILE
from sordino.models.speech import SpeechModel
from tests.tiny import fresh


def unpacked(directory: Path) -> dict[str, Tensor]:
    """The tensors of a decoder's file, by their names in it, in float32."""
    found = {}
    raw = np.fromfile(directory / DECODER_FILE, np.uint8)
    for name, tensor in read_header(directory / DECODER_FILE).tensors.items():
        data = raw[tensor.start : tensor.start + tensor.bytes]
        if tensor.dtype == "F32":
            rows = data.view(np.float32)
        else:
            rows = gguf.quants.dequantize(data.reshape(tensor.shape[0], -1), gguf.GGMLQuantizationType[tensor.dtype])
        found[name] = torch.from_numpy(np.array(rows)).reshape(tensor.shape)
    return found


def transformers_order(name: str, weight: Tensor, speech: SpeechModel) -> Tensor:
    """Rows of queries and keys as transformers has them: halves of a head, and not neighbours."""
    if not speech.family.tensors.gguf.interleaved:
        return weight
    heads = heads_of(name, speech.model.config.get_text_config())
    if not heads:
        return weight
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def rounded_like(speech: SpeechModel, directory: Path) -> SpeechModel:
    """The model in transformers, with the weights that a GGUF export holds."""
    copied = fresh(speech)
    weights = unpacked(directory)
    with torch.no_grad():
        tensors = copied.model.state_dict(keep_vars=True)
        for name, tensor in {id(t): (n, t) for n, t in reversed(tensors.items())}.values():  # a tied one once
            stored = speech.family.gguf_name(name)
            if stored:
                tensor.copy_(transformers_order(stored, weights.pop(stored), speech))
    assert weights.keys() == speech.family.tensors.gguf.constants(copied.model.config.get_text_config()).keys()
    return copied
