"""The ways in which weights can be stored, as data, and the bytes that a model of given shapes takes in each. No torch.

bitsandbytes nf4 with double quantization (arXiv:2305.14314; what bitsandbytes 0.50 writes) stores a matrix of n
weights as: n / 2 bytes, two weights each; .absmax, a byte for every 64 weights; .nested_absmax, 4 bytes for every 256
of those; and per matrix .quant_map (16 x 4 bytes), .nested_quant_map (256 x 4 bytes) and a JSON of about 165 bytes.
Without what is per matrix that is 4 + 8/64 + 32/(64 x 256) = 4.127 bits a weight.

A grouped integer format stores b bits a weight and a 16-bit scale for every 64: b + 0.25 bits.

compressed-tensors 0.20, "pack-quantized" and symmetric, stores X.weight of R rows and C columns as .weight_packed, each
row's C integers of b bits densely in 32-bit words; .weight_scale, 16 bits for every 128 columns (64 or 32, where 128
do not divide C); and .weight_shape, 16 bytes: b + 16/128 bits a weight, 4.125 at 4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sordino.checkpoint.reading import Tensor
from sordino.checkpoint.writing import Planned, header, place
from sordino.errors import FamilyError
from sordino.layouts import gguf
from sordino.models.parts import is_counter, part_of
from sordino.models.shapes import Shape

NF4_BLOCK, NESTED_BLOCK = 64, 256  # weights that share an absmax; absmax values that share one in turn
NF4_CODES, NESTED_CODES = 16, 256  # entries of the two tables of values, float32
GROUP, SCALE_BYTES = 64, 2  # of the grouped integer formats
PACKED_BITS, EMBEDDING_BITS = (2, 3, 4, 8), 8
PACKED_GROUPS = (128, 64, 32)  # columns that share a scale; engines' kernels take no smaller ones

Stored = dict[str, Tensor]
Storage = Callable[[str, tuple[int, ...]], Stored]


@dataclass(frozen=True)
class Layout:
    """How each kind of tensor is stored. adapter: whether a LoRA lies beside, in float32, instead of merged.

    decoder: its linear layers, where they are stored otherwise than the encoder's and the projector's.
    """

    title: str
    linear: Storage
    embedding: Storage
    head: Storage
    other: Storage
    adapter: bool = False
    decoder: Storage | None = None


def plain(dtype: str, width: int) -> Storage:
    """As it is; width: bytes an element. Counters stay whole numbers."""

    def store(name: str, shape: tuple[int, ...]) -> Stored:
        kind, size = ("I64", 8) if is_counter(name) else (dtype, width)
        return {name: Tensor(kind, shape, size * _product(shape))}

    return store


def nf4(name: str, shape: tuple[int, ...]) -> Stored:
    """bitsandbytes' tensors of one matrix. The JSON's length varies by a few bytes with a number printed in it."""
    weights = _product(shape)
    packed, blocks = -(-weights // 2), -(-weights // NF4_BLOCK)
    nested = -(-blocks // NESTED_BLOCK)
    state = {
        "quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": "bfloat16", "shape": list(shape),
        "nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": 0.3885498046875,
    }  # fmt: skip
    length = len(json.dumps(state))
    return {
        name: Tensor("U8", (packed, 1), packed),
        f"{name}.absmax": Tensor("U8", (blocks,), blocks),
        f"{name}.nested_absmax": Tensor("F32", (nested,), 4 * nested),
        f"{name}.nested_quant_map": Tensor("F32", (NESTED_CODES,), 4 * NESTED_CODES),
        f"{name}.quant_map": Tensor("F32", (NF4_CODES,), 4 * NF4_CODES),
        f"{name}.quant_state.bitsandbytes__nf4": Tensor("U8", (length,), length),
    }


def grouped(bits: int) -> Storage:
    """Integers of so many bits, packed into bytes, and a 16-bit scale for every GROUP weights of a row."""

    def store(name: str, shape: tuple[int, ...]) -> Stored:
        rows, columns = _product(shape[:-1]), shape[-1]
        packed, groups = rows * -(-columns * bits // 8), rows * -(-columns // GROUP)
        return {
            name: Tensor("U8", (rows, packed // rows), packed),
            f"{name}.scales": Tensor("BF16", (rows, groups // rows), SCALE_BYTES * groups),
        }

    return store


def packed(bits: int, group: int = PACKED_GROUPS[0]) -> Storage:
    """compressed-tensors' tensors of one weight. Raises FamilyError where no group divides its columns."""

    def store(name: str, shape: tuple[int, ...]) -> Stored:
        rows, columns = shape
        words, groups = -(-columns * bits // 32), columns // group_for(columns, group)
        return {
            f"{name}_packed": Tensor("I32", (rows, words), 4 * rows * words),
            f"{name}_scale": Tensor("BF16", (rows, groups), SCALE_BYTES * rows * groups),
            f"{name}_shape": Tensor("I64", (2,), 16),
        }

    return store


def int8(group: int = PACKED_GROUPS[0]) -> Storage:
    """compressed-tensors' tensors of one weight in whole bytes ("int-quantized")."""

    def store(name: str, shape: tuple[int, ...]) -> Stored:
        rows, columns = shape
        groups = columns // group_for(columns, group)
        return {
            name: Tensor("I8", shape, rows * columns),
            f"{name}_scale": Tensor("BF16", (rows, groups), SCALE_BYTES * rows * groups),
        }

    return store


def quantized(name: str, shape: tuple[int, ...], bits: int, group: int = PACKED_GROUPS[0]) -> Stored:
    """The tensors of one weight of a compressed-tensors checkpoint.

    An embedding is stored in whole bytes: transformers 5.23 loads no packed one.
    Raises FamilyError for an embedding of other than 8 bits, and where no group divides the columns.
    """
    if part_of(name) != "embedding":
        return packed(bits, group)(name, shape)
    if bits != EMBEDDING_BITS:
        raise FamilyError(
            f"'{name}' cannot be stored in {bits} bits: transformers loads embeddings in 8 or 16.", "Give it 8 or 16."
        )
    return int8(group)(name, shape)


def group_for(columns: int, group: int = PACKED_GROUPS[0]) -> int:
    """The largest of PACKED_GROUPS, up to `group`, that divides so many columns. Raises FamilyError for none."""
    largest = next((g for g in PACKED_GROUPS if g <= group and columns % g == 0), None)
    if largest is None:
        raise FamilyError(
            f"weights of {columns} columns cannot be packed: no group of {', '.join(map(str, PACKED_GROUPS))} up to "
            f"{group} divides them.",
            "Keep them in 16 bits.",
        )
    return largest


F32, BF16 = plain("F32", 4), plain("BF16", 2)
LAYOUTS = {
    "float32": Layout("32-bit", F32, F32, F32, F32),
    "bf16": Layout("16-bit", BF16, BF16, BF16, BF16),
    "reference": Layout("nf4, rest 32-bit, LoRA beside it (the paper's models)", nf4, F32, F32, F32, adapter=True),
    "nf4": Layout("nf4 with double quantization, rest bf16, merged", nf4, BF16, BF16, BF16),
    "w4a16": Layout("decoder 4 bit (compressed-tensors), rest bf16, merged", BF16, BF16, BF16, BF16, decoder=packed(4)),
    "nf4-e4-h8": Layout("nf4, embedding 4 bit, head 8 bit, rest bf16", nf4, grouped(4), grouped(8), BF16),
}

TITLES = {name: layout.title for name, layout in LAYOUTS.items()} | gguf.TITLES


def stored(tensors: Iterable[Shape], layout: str) -> Stored:
    """The tensors of a checkpoint in this layout, one of TITLES, by name."""
    if layout in gguf.FORMATS:
        return gguf.stored(tensors, layout)
    rules = LAYOUTS[layout]
    kinds: Mapping[str, Storage] = {
        "linear": rules.linear,
        "embedding": rules.embedding,
        "head": rules.head,
        "other": rules.other,
    }
    tensors_by_name: Stored = {}
    for tensor in tensors:
        store = rules.decoder if rules.decoder and in_decoder(tensor) else kinds[tensor.kind]
        tensors_by_name |= store(tensor.name, tensor.shape)
    return tensors_by_name


def mixed(tensors: Iterable[Shape], bits: Mapping[str, int], group: int = PACKED_GROUPS[0]) -> Stored:
    """The tensors of a packed checkpoint. bits: names of weights -> bits; all others are bfloat16."""
    tensors_by_name: Stored = {}
    for tensor in tensors:
        width = bits.get(tensor.name, 16)
        if width == 16:
            tensors_by_name |= BF16(tensor.name, tensor.shape)
        else:
            tensors_by_name |= quantized(tensor.name, tensor.shape, width, group)
    return tensors_by_name


def w4a16(tensors: Iterable[Shape]) -> dict[str, int]:
    """The bits of format w4a16: 4 for the decoder's linear layers."""
    return {tensor.name: 4 for tensor in tensors if in_decoder(tensor)}


def in_decoder(tensor: Shape) -> bool:
    """Whether it is the weight of one of the decoder's linear layers."""
    return tensor.kind == "linear" and tensor.part == "decoder"


def data_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors, without a file's header."""
    return sum(tensor.bytes for tensor in tensors.values())


def stored_elements(tensors: Mapping[str, Tensor]) -> int:
    """What model hubs print as parameters."""
    return sum(tensor.elements for tensor in tensors.values())


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the one file that save_pretrained writes: length, header, data."""
    placed = place({name: Planned(tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    return len(header(placed)) + data_bytes(tensors)


def disk_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of a checkpoint's files: one of safetensors, and the decoder's GGUF where there is one."""
    decoder = {name: tensor for name, tensor in tensors.items() if gguf.OURS.match(name)}
    rest = {name: tensor for name, tensor in tensors.items() if name not in decoder}
    return safetensors_bytes(rest) + (gguf.file_bytes(decoder) if decoder else 0)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
