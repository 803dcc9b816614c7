"""A decoder in GGUF: llama.cpp's names, the type of each tensor, and the bytes they take. No torch.

What llama.cpp calls Q4_K_M is Q4_K, with Q6_K for the head and for about half of the value and down projections. A
row that is no multiple of 256 falls back to blocks of 32, one that is no multiple of 32 to F16.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sordino.checkpoint.gguf import BLOCKS, aligned, bytes_of
from sordino.checkpoint.reading import Tensor
from sordino.models.parts import is_counter
from sordino.models.shapes import Shape

NARROWER = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # where a row is no multiple of 256, as llama.cpp does
HEAD = "output.weight"
OURS = re.compile(r"^(?:token_embd|output|output_norm|blk\.\d+\..+)\.(?:weight|bias)$")  # names in a decoder's GGUF
KEYS_BYTES = 604  # of the keys that formats/gguf.py writes; they vary by a few bytes
FORMATS = {"gguf-q8_0": "Q8_0", "gguf-q4_k_m": "Q4_K_M", "gguf-q4_0": "Q4_0"}
TITLES = {
    "gguf-q8_0": "decoder in GGUF Q8_0 for llama.cpp, rest bf16",
    "gguf-q4_k_m": "decoder in GGUF Q4_K_M, rest bf16",
    "gguf-q4_0": "decoder in GGUF Q4_0, its head in Q8_0, rest bf16",
}


def types(shapes: Mapping[str, tuple[int, ...]], layout: str) -> dict[str, tuple[str, str]]:
    """GGUF name -> (type it is stored in, type it was meant for), in one of FORMATS. shapes: by GGUF name."""
    scheme = FORMATS[layout]
    layers = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blk.")), default=-1)
    head = HEAD if HEAD in shapes else "token_embd.weight"  # a tied embedding is the head as well
    kinds = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            kinds[name] = ("F32", "F32")  # llama.cpp adds and multiplies norms and biases in 32 bits
            continue
        meant = scheme
        if scheme == "Q4_0" and name == head:
            meant = "Q8_0"
        elif scheme == "Q4_K_M":
            meant = "Q6_K" if name == head or _more_bits(name, layers) else "Q4_K"
        stored = meant
        if shape[-1] % BLOCKS[stored][0]:
            stored = NARROWER.get(stored, "F16")
        if shape[-1] % BLOCKS[stored][0]:
            stored = "F16"
        kinds[name] = (stored, meant)
    return kinds


def _more_bits(name: str, layers: int) -> bool:
    """Value and down projections of the first and last eighth of the layers, and every third between."""
    parts = name.split(".")
    if parts[0] != "blk" or parts[2] not in ("attn_v", "ffn_down"):
        return False
    layer, eighth = int(parts[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def stored(tensors: Iterable[Shape], layout: str) -> dict[str, Tensor]:
    """What a model becomes: the decoder's tensors by their names in the GGUF file, the others in bfloat16."""
    tensors_by_name, decoder = {}, {}
    for tensor in tensors:
        name = tensor.gguf
        if name is None:
            dtype, width = ("I64", 8) if is_counter(tensor.name) else ("BF16", 2)
            tensors_by_name[tensor.name] = Tensor(dtype, tensor.shape, width * tensor.elements)
        else:
            decoder[name] = tensor.shape
    for name, (dtype, _) in types(decoder, layout).items():
        tensors_by_name[name] = Tensor(dtype, decoder[name], bytes_of(dtype, decoder[name]))
    return tensors_by_name


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of a decoder's GGUF file, to a few bytes."""
    infos = sum(8 + len(name) + 4 + 8 * len(t.shape) + 4 + 8 for name, t in tensors.items())
    return aligned(24 + KEYS_BYTES + infos) + sum(aligned(t.bytes) for t in tensors.values())
