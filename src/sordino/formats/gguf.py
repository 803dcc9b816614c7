"""GGUF: the decoder in one file for llama.cpp; audio encoder and projector beside it in bfloat16 safetensors.

Their file is not called model.safetensors: stock `from_pretrained` would load it, and make up the decoder.

llama.cpp's own path for audio hears a whole window of unmasked silence, so that it is left out: here the encoder runs
in torch, and what it and the projector give enters the decoder as embeddings (models/hybrid.py). The embedding's rows
for the prompt come from the GGUF file too; nothing is stored twice, and no tokenizer either: ids are transformers'.

Tensors are read, rounded and written one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.checkpoint.gguf import bytes_of
from sordino.checkpoint.reading import ENCODER_STEM
from sordino.checkpoint.writing import Writer
from sordino.errors import FamilyError
from sordino.layouts import gguf as layout
from sordino.models import llama_cpp, stored
from sordino.models.family import Family
from sordino.models.family import Gguf as Decoder
from sordino.models.hybrid import DECODER_FILE, require_gguf
from sordino.models.parts import part_of
from sordino.runtime.executor import parallel_map
from sordino.runtime.progress import bar

METHOD = "gguf"  # quantization_config's quant_method
IN_PYTHON = ("F32", "F16", "Q8_0", "Q4_0")  # types that the gguf package rounds to, bit by bit as ggml does
CHUNK_WEIGHTS = 2**22  # rounded at once
LOADS_WITH = "sordino, with llama-cpp-python: sordino translate PATH AUDIO..."


@dataclass(frozen=True)
class Gguf:
    """One of measure.gguf's FORMATS as an export format."""

    layout: str
    LOADS_WITH: str = LOADS_WITH

    def require(self) -> None:
        """Raise FamilyError where a package is missing that writing needs."""
        require_gguf()
        if layout.FORMATS[self.layout] not in IN_PYTHON:
            _require_rounding(self.layout)

    def require_to_translate(self) -> None:
        """Raise FamilyError where a package is missing that such a model translates with."""
        require_gguf()
        llama_cpp.Library.get()

    def write(self, source: str, directory: Path, revision: str | None = None) -> dict[str, Any]:
        """source: a 16- or 32-bit model directory, or a Hub id -> what the audit should say of the decoder's types.

        Raises FamilyError for a family that llama.cpp has no decoder for, a model that is quantized already or has
        what llama.cpp's decoder has not, and where a package is missing; ArtifactError for damaged weights.
        """
        require_gguf()
        model = stored.open_model(source, revision)
        family, text = model.speech.family, model.speech.model.config.get_text_config()
        if family.tensors.gguf is None:
            raise FamilyError(f"llama.cpp has no decoder for {family.model_type} models.", "Export another format.")
        if family.tensors.gguf.one_kind:
            _check(text, source)
        sources = model.sources()
        names = _decoder_names(family, sources)
        shapes = {name: model.checkpoint.tensors[sources[theirs]].shape for name, theirs in names.items()}
        types = layout.types(shapes, self.layout)
        if any(kind not in IN_PYTHON for kind, _ in types.values()):
            _require_rounding(self.layout)  # asked for before anything is written
        _write_rest(model, {name: source for name, source in sources.items() if name not in names.values()}, directory)
        constants = {name: np.array(row, np.float32) for name, row in family.tensors.gguf.constants(text).items()}
        whole = {**{name: row.shape for name, row in constants.items()}, **shapes}
        with bar(self.layout, len(names)) as advance:
            kinds = {name: types[name][0] if name in types else "F32" for name in whole}
            writer = _writer(directory / DECODER_FILE, family.tensors.gguf, text, whole, kinds)
            try:
                for row in constants.values():
                    writer.write_tensor_data(row)
                for name, theirs in names.items():
                    heads = heads_of(name, text) if family.tensors.gguf.interleaved else None
                    writer.write_tensor_data(_rounded(model, sources[theirs], types[name][0], heads))
                    advance(1)
            finally:
                writer.close()
        model.describe(directory, {"quant_method": METHOD, "file": DECODER_FILE, "layout": self.layout})
        return {"decoder": _notes(types, shapes)}


Q8_0, Q4_K_M, Q4_0 = Gguf("gguf-q8_0"), Gguf("gguf-q4_k_m"), Gguf("gguf-q4_0")


def _require_rounding(name: str) -> None:
    """Raise FamilyError where llama-cpp-python is missing, whose library rounds to the types that gguf does not."""
    if not llama_cpp.available():
        raise FamilyError(
            f"{name} is rounded by llama.cpp's library: llama-cpp-python, which is not installed.",
            f"{llama_cpp.EXTRA}, or export gguf-q8_0 or gguf-q4_0, which need the package gguf alone.",
        )
    llama_cpp.Library.get()


def _check(text: Any, source: str) -> None:
    """Raise FamilyError for what llama.cpp's decoder would compute otherwise."""
    rope = text.rope_parameters or {}
    problems = []
    if rope.get("rope_type", "default") != "default":
        problems.append(f"scaled rotary positions ({rope['rope_type']})")
    if getattr(text, "use_sliding_window", False):
        problems.append("sliding windows")
    if text.hidden_act != "silu":
        problems.append(f"the activation {text.hidden_act}")
    if problems:
        raise FamilyError(f"{source} has {' and '.join(problems)}, which GGUF export does not write.", "Use bf16.")


def _decoder_names(family: Family, names: Iterable[str]) -> dict[str, str]:
    """GGUF name -> name as transformers saves it, of the decoder's tensors in the order of a forward pass."""
    by_name = {}
    for theirs in names:
        name = family.gguf_name(theirs)
        if name is not None:
            by_name[name] = theirs
        elif part_of(theirs) not in ("audio_encoder", "projector") and family.tensors.runs(
            family.tensors.live_name(theirs)
        ):
            raise FamilyError(f"llama.cpp's decoder has no place for '{theirs}'.", "Export another format.")

    def order(name: str) -> tuple[int, int, str]:
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        return (0 if name.startswith("token") else 1 if name.startswith("blk.") else 2, layer, name)

    return {name: by_name[name] for name in sorted(by_name, key=order)}


def _write_rest(model: stored.Stored, sources: Mapping[str, str], directory: Path) -> None:
    """Audio encoder and projector, in bfloat16. sources: name -> name in the checkpoint."""
    planned = {name: stored.planned_16bit(model.checkpoint, source) for name, source in sources.items()}
    for stale in directory.glob("model*.safetensors*"):  # as this was called once
        stale.unlink()
    with Writer(directory, planned, stem=ENCODER_STEM) as out:
        for name, source in sources.items():
            out.copy(name, model.checkpoint, source)


def _writer(
    file: Path, gguf: Decoder, text: Any, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]
) -> Any:
    """A gguf.GGUFWriter with keys and the table of tensors written, ready for their data in that order."""
    import gguf as package

    keys: dict[str, Any] = {
        "block_count": text.num_hidden_layers,
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "vocab_size": text.vocab_size,
    }
    writer = package.GGUFWriter(file, gguf.architecture)
    for name, value in {**keys, **(_heads(text) if gguf.one_kind else {}), **gguf.keys(text)}.items():
        kinds_of = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        kinds_of[type(value)](f"{gguf.architecture}.{name}", value)
    writer.add_tokenizer_model("none")  # ids are transformers'
    writer.add_quantization_version(package.GGML_QUANT_VERSION)
    for name, shape in shapes.items():
        kind = kinds[name]
        writer.add_tensor_info(
            name, shape, np.dtype(np.float32), bytes_of(kind, shape), package.GGMLQuantizationType[kind]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _heads(text: Any) -> dict[str, Any]:
    """Key-value heads and rotary embeddings, where all layers have the same."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return {
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": float(text.rope_parameters["rope_theta"]),
    }


def heads_of(name: str, text: Any) -> int | None:
    """Heads of a query or key projection; None for another tensor."""
    return {"attn_q": text.num_attention_heads, "attn_k": text.num_key_value_heads}.get(name.split(".")[-2])


def _rounded(model: stored.Stored, name: str, kind: str, heads: int | None) -> NDArray[Any]:
    """A tensor's data in a type of GGUF. heads: of a projection whose rotary pairs become neighbours."""
    tensor = model.checkpoint.tensors[name]
    if len(tensor.shape) == 1 or heads:
        whole = model.read(name).to(torch.float32).numpy()
        if heads:
            half = len(whole) // heads // 2
            whole = whole.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(whole.shape)
        return _quantized(whole, kind) if whole.ndim > 1 else whole
    rows, columns = tensor.shape
    blocks = np.empty((rows, bytes_of(kind, (columns,))), np.uint8)
    at_once = max(1, CHUNK_WEIGHTS // columns)

    def piece(start: int) -> tuple[int, NDArray[np.uint8]]:
        part = model.read(name, (start, min(start + at_once, rows))).to(torch.float32).numpy()
        return start, _quantized(part, kind)

    for start, data in parallel_map(torch.device("cpu"), piece, range(0, rows, at_once)):
        blocks[start : start + len(data)] = data
    return blocks


def _quantized(rows: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """(R, C) -> (R, bytes of a row)."""
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    if kind in IN_PYTHON:
        rows_packed: NDArray[Any] = gguf.quants.quantize(rows, number)
        return rows_packed.view(np.uint8)
    return llama_cpp.quantize(rows, int(number), bytes_of(kind, (rows.shape[1],)))


def _notes(types: dict[str, tuple[str, str]], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """For the audit: how many tensors are of each type, and which could not be what they were meant to be."""
    counts: dict[str, int] = {}
    for kind, _ in types.values():
        counts[kind] = counts.get(kind, 0) + 1
    fallen = {
        name: f"{kind} instead of {wanted}: its rows of {shapes[name][-1]} are no whole blocks"
        for name, (kind, wanted) in types.items()
        if kind != wanted
    }
    return {"tensors": counts, "instead": fallen}
