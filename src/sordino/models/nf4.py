"""4-bit NormalFloat weights (nf4, QLoRA: arXiv:2305.14314) through bitsandbytes.

Every linear layer but the head is quantized, the audio tower's and the projector's too; scales are quantized
once more (double quantization). Norms, convolutions, embedding and head stay in 16 bits.

What is written is written before the first forward pass, which turns biases into the type it computes in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sordino.errors import FamilyError
from sordino.models.family import Family
from sordino.runtime.executor import parallel_map

BLOCK, NESTED_BLOCK = 64, 256  # weights that share a scale; scales that share one in turn
PIECE = 2**20  # weights packed at once: a multiple of BLOCK


def nf4_config(family: Family, compute_dtype: torch.dtype, kept: Sequence[str] = ()) -> Any:
    """The BitsAndBytesConfig that quantizes every linear layer of this family but the head.

    kept: parts that stay in 16 bits as well, e.g. encoder and projector, as far as the family has them.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        # a list of one's own replaces the default, which holds the head: always the full list
        llm_int8_skip_modules=[family.parts[part] for part in ("head", *kept) if part in family.parts],
    )


def is_quantized(module: nn.Module) -> bool:
    """Whether this is a bitsandbytes layer, whose weight is packed and not a matrix."""
    return type(module).__module__.startswith("bitsandbytes.")


def quantized_linears(model: nn.Module) -> list[str]:
    """Names of the quantized linear layers, in model order."""
    return [name for name, module in model.named_modules() if is_quantized(module)]


def linears(family: Family, model: nn.Module, kept: Sequence[str] = ()) -> dict[str, nn.Linear]:
    """The linear layers that `nf4_config` means, by name, quantized or not."""
    kept_paths = tuple(family.parts[part] for part in ("head", *kept) if part in family.parts)
    every = {
        name: module
        for name, module in model.named_modules()
        # transformers leaves out what belongs to torch's own attention
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    return {name: m for name, m in every.items() if not any(f"{name}.".startswith(f"{part}.") for part in kept_paths)}


def refuse_split_blocks(family: Family, layers: Mapping[str, nn.Linear]) -> None:
    """Raise FamilyError for rows that are no whole blocks, in layers that speech runs.

    bitsandbytes 0.50 reads such layers wrongly, without a word, on processors with AVX-512.
    """
    for name, layer in layers.items():
        if layer.in_features % BLOCK and family.tensors.runs(name):  # what sees has rows of 3,420 and 4,304
            raise FamilyError(
                f"{name} has rows of {layer.in_features} weights, which are no whole blocks of {BLOCK}: bitsandbytes "
                "reads them wrongly on some processors.",
                "Take another format than nf4, or no quantization.",
            )


def nf4_tensors(weight: Tensor) -> dict[str, Tensor]:
    """A matrix -> what is stored of it: suffix of its name -> tensor, the 4-bit weights under ''."""
    packed, state = _quantized(weight)
    return {"": packed, **{f".{name}": tensor for name, tensor in state.as_dict(packed=True).items()}}


def nf4_rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix as it is read back from `nf4_tensors` by a model that computes in `dtype`."""
    from bitsandbytes.functional import dequantize_4bit

    packed, state = _quantized(weight)
    state.dtype = dtype
    rounded: Tensor = dequantize_4bit(packed, state)
    return rounded


def _quantized(weight: Tensor) -> tuple[Tensor, Any]:
    """4-bit weights and bitsandbytes' QuantState.

    To the bit what bitsandbytes makes of the whole matrix at once; in pieces that fit the cache it is faster.
    """
    from bitsandbytes.functional import QuantState, quantize_4bit, quantize_blockwise

    def pack(piece: Tensor) -> tuple[Tensor, QuantState]:
        packed, state = quantize_4bit(piece, blocksize=BLOCK, compress_statistics=False, quant_type="nf4")
        return packed, state

    pieces = list(parallel_map(weight.device, pack, torch.split(weight.reshape(-1), PIECE)))
    absmax = torch.cat([state.absmax for _, state in pieces])
    offset = absmax.mean()
    scales, nested = quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    state = QuantState(
        absmax=scales,
        shape=weight.shape,
        dtype=weight.dtype,
        blocksize=BLOCK,
        code=pieces[0][1].code,
        quant_type="nf4",
        offset=offset,
        state2=nested,
    )
    return torch.cat([packed for packed, _ in pieces]), state


def nf4_shapes(shape: Sequence[int]) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """Types, as safetensors spells them, and shapes of `nf4_tensors` of a matrix; None: known only then."""
    blocks = -(-math.prod(shape) // BLOCK)
    return {
        "": ("U8", (-(-math.prod(shape) // 2), 1)),
        ".absmax": ("U8", (blocks,)),
        ".nested_absmax": ("F32", (-(-blocks // NESTED_BLOCK),)),
        ".nested_quant_map": ("F32", (256,)),
        ".quant_map": ("F32", (16,)),
        ".quant_state.bitsandbytes__nf4": ("U8", None),
    }


def check_nf4(family: Family, model: nn.Module, kept: Sequence[str] = ()) -> None:
    """Raise FamilyError unless exactly the linear layers that `nf4_config` means are quantized, and to nf4."""
    linear = linears(family, model, kept)
    problems = [f"{name} is not quantized" for name, module in linear.items() if not is_quantized(module)]
    problems += [f"{name} must not be quantized" for name in quantized_linears(model) if name not in linear]
    for name, module in linear.items():
        state: Any = getattr(module.weight, "quant_state", None)
        if is_quantized(module) and not (state and state.quant_type == "nf4" and state.nested):
            problems.append(f"{name} is not nf4 with double quantization")
    if not linear:
        problems.append("it has no linear layers")
    if problems:
        raise FamilyError(
            f"a {family.model_type} model is not quantized as asked: {problems[0]}, {len(problems)} such in all.",
            "Quantize a 16-bit model, with the versions of transformers and bitsandbytes that sordino names.",
        )


def is_packed(model: nn.Module) -> bool:
    """Whether this model came from a compressed-tensors checkpoint and holds its weights as that has them."""
    return getattr(model, "quantization_method", None) == "compressed-tensors"


def unpack(model: nn.Module) -> None:
    """Give a model loaded from a compressed-tensors checkpoint its weights as matrices, and plain layers.

    transformers holds them packed until the first pass through the whole model; nothing here makes one, since the
    parts are run by themselves. What is left is as large as the model that was packed.
    """
    from compressed_tensors.compressors import decompress_module

    quantizer: Any = model.hf_quantizer
    for module in model.modules():
        decompress_module(module, leave_decompressed=False)
    quantizer.compressor.remove_decompression_hook(model)
    quantizer.remove_quantization_config(model)


def set_compute_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a quantized model compute in `dtype`, whatever its stored configuration says.

    The 4-bit layers are unpacked to it and multiply in it; left alone, training rounds unpacked weights to the
    type they once had and generating does not. The other weights are held in it: transformers leaves some of
    them in the type they are stored in when it loads a quantized checkpoint, and two types do not multiply.

    On processors with AVX512-BF16, bitsandbytes 0.50 packs a layer anew in its first pass: its scales are rounded, rows
    that are no whole blocks fail, and two threads that come first together break it. That is switched off, so that a
    model computes the same on every processor.
    """
    for module in model.modules():
        if is_quantized(module) and hasattr(module, "compute_dtype"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            module.compute_dtype = dtype  # type: ignore[assignment]  # a plain attribute
            module.compute_type_is_set = True  # type: ignore[assignment]
            state: Any = getattr(module.weight, "quant_state", None)
            if state is not None:
                state.dtype = dtype
    keep: Any = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if any(part in name for part in keep) else dtype)
