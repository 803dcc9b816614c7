"""Weights rounded to integers of 2, 3, 4 or 8 bits in groups, and packed as compressed-tensors stores them.

A row of a weight (R, C) is cut into groups of G columns. A group is stored as integers q of b bits, from -N to N - 1
with N = 2^(b-1), and one bfloat16 scale s, and stands for q s: symmetric, so that there is no zero point to store.

The scale may be negative. The range has one integer more below zero than above, and a searched scale whose sign puts it
on the side of the group's largest weight leaves as little error as a zero point would.

Its size is |w|^2 / <w, q> and not <w, q> / <q, q>, which would leave the least error and make every group, and with it
the layer's outputs, smaller by that error: what is left here stands at right angles to w. At 2 bits that is an eighth
of the output of every layer; without it the demo's student diverged four times less from its 16-bit form.
Relative error (root mean square) of normally distributed weights at G = 64, in brackets that of the usual
s = max|w| / (N - 1/2): 2 bits 0.375 (0.511), 3 bits 0.180 (0.220), 4 bits 0.091 (0.103).

compressed-tensors' "pack-quantized" (0.20) packs a row's integers, N added, densely into 32-bit words, the first into
the lowest bits; an integer of 3 bits may lie across two words. C weights take ceil(C b / 32) words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sordino.layouts import tables

WORD = 32  # bits
CHUNK = 2**18  # weights looked at together: the search's temporaries stay in the cache
FACTORS = tuple(0.5 + i / 14 for i in range(8))  # of the scale that just covers the group's largest weight
SEARCHED_BITS = 4  # up to here a searched scale pays; at 8 bits it gains nothing


@dataclass(frozen=True)
class Scheme:
    """bits: 2, 3, 4 or 8 a weight; group: columns that share a scale."""

    bits: int
    group: int

    def __post_init__(self) -> None:
        if self.bits not in tables.PACKED_BITS:
            raise ValueError(f"{self.bits} bits a weight; known: {', '.join(map(str, tables.PACKED_BITS))}")

    @property
    def low(self) -> int:
        """The least integer; the largest is -low - 1."""
        return -(1 << (self.bits - 1))


@dataclass(frozen=True)
class Rounded:
    """codes: (R, C) int8; scale: (R, C / G) bfloat16. The weight is codes times its group's scale."""

    codes: Tensor
    scale: Tensor
    scheme: Scheme

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(R, C)."""
        grouped = _groups(self.codes.to(dtype), self.scheme.group)
        return (grouped * self.scale[..., None].to(dtype)).flatten(-2)

    def tensors(self, *, packed: bool = True) -> dict[str, Tensor]:
        """What a checkpoint stores instead of `X.weight`: X.weight_packed, X.weight_scale, X.weight_shape.

        packed=False: a byte for every integer, X.weight and X.weight_scale, as compressed-tensors' "int-quantized".
        """
        if not packed:
            return {"weight": self.codes, "weight_scale": self.scale}
        return {
            "weight_packed": pack(self.codes, self.scheme.bits),
            "weight_scale": self.scale,
            "weight_shape": torch.tensor(self.codes.shape, dtype=torch.int64),
        }


def quantize(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Rounded:
    """Round a weight (R, C) to nearest, with searched scales.

    importance: (C,) what an error in each column costs; default: the same in all of them.
    Raises ValueError for weights that are not finite or whose columns the group does not divide.
    """
    rows, columns = weight.shape
    if columns % scheme.group:
        raise ValueError(f"groups of {scheme.group} do not divide {columns} columns")
    costs = None if importance is None else _groups(importance.float(), scheme.group)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(rows, columns // scheme.group, dtype=torch.bfloat16, device=weight.device)
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        part = _groups(weight[start : start + step].float(), scheme.group)
        found, scale[start : start + step] = fit(part, scheme, costs)
        codes[start : start + step] = found.flatten(-2)
    return Rounded(codes, scale, scheme)


def fit(groups: Tensor, scheme: Scheme, costs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Groups (..., G) in float32 -> integers (..., G) as int8 and scales (...) in bfloat16.

    costs: of an error in each column, broadcast to groups. Integers q that leave the least error have the largest
    <w, q>^2 / <q, q>, whichever of the two scales is taken with them; they are searched among what w rounds to at
    factors of the covering scale, of both signs at 2 bits. Raises ValueError for weights that are not finite.
    """
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    covering = torch.where(high > -low, high, low) / scheme.low
    if not bool(torch.isfinite(covering).all()):
        raise ValueError("weights that are not finite")
    covering = torch.where(covering == 0, torch.ones_like(covering), covering)
    if scheme.bits > SEARCHED_BITS:
        scale = _representable(covering[..., 0])
        return nearest(groups, scale, scheme), scale
    weighted = groups if costs is None else groups * costs
    gained, best, scale = torch.zeros_like(covering), torch.zeros_like(groups), covering
    size = (weighted * groups).sum(-1, keepdim=True)
    for factor in (*FACTORS, *(-f for f in FACTORS)) if scheme.bits == 2 else FACTORS:
        q = (groups / (covering * factor)).round_().clamp_(scheme.low, -scheme.low - 1)
        along = (weighted * q).sum(-1, keepdim=True)
        length = (q * q if costs is None else q * q * costs).sum(-1, keepdim=True)
        gain = along * along / length.clamp_min(torch.finfo(torch.float32).tiny)
        better = gain > gained
        gained, best = torch.where(better, gain, gained), torch.where(better, q, best)
        scale = torch.where(better, size / along, scale)
    return best.to(torch.int8), _representable(scale[..., 0])


def _representable(scale: Tensor) -> Tensor:
    """In bfloat16, and never zero: weights are divided by it."""
    rounded_scale = scale.to(torch.bfloat16)
    return torch.where(rounded_scale == 0, torch.ones_like(rounded_scale), rounded_scale)


def nearest(groups: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """Groups (..., G) in float32 and scales (...) -> integers (..., G) as int8."""
    return (groups / scale[..., None].float()).round_().clamp_(scheme.low, -scheme.low - 1).to(torch.int8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers (R, C) int8 -> words (R, ceil(C bits / 32)) int32."""
    rows, columns = codes.shape
    words = torch.empty(rows, -(-columns * bits // WORD), dtype=torch.int32, device=codes.device)
    step = max(1, CHUNK // max(columns, 1))
    for start in range(0, rows, step):
        part = codes[start : start + step].to(torch.int32) + (1 << (bits - 1))
        part = _groups(pad(part, (0, -columns % WORD)), WORD)
        into = torch.zeros(*part.shape[:-1], bits, dtype=torch.int32, device=codes.device)
        for i in range(WORD):
            word, offset = divmod(i * bits, WORD)
            into[..., word] |= part[..., i] << offset
            if offset + bits > WORD:
                into[..., word + 1] |= part[..., i] >> (WORD - offset)
        words[start : start + step] = into.flatten(-2)[:, : words.shape[1]]
    return words


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """Words (R, ceil(C bits / 32)) int32 -> integers (R, C) int8."""
    filled = _groups(pad(words, (0, -words.shape[1] % bits)), bits)
    mask = (1 << bits) - 1
    values = []
    for i in range(WORD):
        word, offset = divmod(i * bits, WORD)
        value = (filled[..., word] >> offset) & (mask if offset + bits <= WORD else (1 << (WORD - offset)) - 1)
        if offset + bits > WORD:
            value |= (filled[..., word + 1] << (WORD - offset)) & mask
        values.append((value - (1 << (bits - 1))).to(torch.int8))
    return torch.stack(values, -1).flatten(-2)[:, :columns]


def _groups(rows: Tensor, size: int) -> Tensor:
    """(..., C) -> (..., C / size, size)."""
    return rows.reshape(*rows.shape[:-1], -1, size)
