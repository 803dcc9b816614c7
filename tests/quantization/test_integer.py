"""Rounding in groups: the error it leaves, the bits it packs, and that compressed-tensors reads and writes the same."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors import pack_quantized
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.errors import FamilyError
from sordino.layouts import tables
from sordino.quantization import integer
from sordino.quantization.integer import Scheme

BITS = (2, 3, 4, 8)


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(weight: torch.Tensor, rounded: integer.Rounded) -> float:
    return float((rounded.dequantized() - weight).norm() / weight.norm())


@pytest.mark.parametrize(("bits", "expected"), [(2, 0.375), (3, 0.180), (4, 0.091), (8, 0.006)])
def test_the_error_is_what_the_module_says(bits: int, expected: float) -> None:
    weight = normal(256, 1024)
    assert error(weight, integer.quantize(weight, Scheme(bits, 64))) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_searched_scale_beats_the_usual_one(bits: int) -> None:
    weight = normal(64, 512).unflatten(-1, (-1, 64))
    scheme = Scheme(bits, 64)
    usual = (weight.abs().amax(-1) / (-scheme.low - 0.5)).bfloat16()

    def left(codes: torch.Tensor, scale: torch.Tensor) -> float:
        return float((codes * scale[..., None].float() - weight).square().sum())

    before = left(integer.nearest(weight, usual, scheme), usual)
    assert left(*integer.fit(weight, scheme)) < {2: 0.6, 3: 0.7, 4: 0.8}[bits] * before


@pytest.mark.parametrize("bits", BITS)
def test_nothing_becomes_smaller(bits: int) -> None:
    """Every group keeps its part along the weight: outputs are noisy but of the size they had."""
    weight = normal(64, 512)
    rounded = integer.quantize(weight, Scheme(bits, 64)).dequantized()
    groups, found = weight.view(64, -1, 64), rounded.view(64, -1, 64)
    kept = (groups * found).sum(-1) / groups.square().sum(-1)
    assert float((kept - 1).abs().max()) < 0.005  # the scale's own rounding; least squares gives 0.877 at 2 bits


def test_importance_moves_the_error_to_columns_that_matter_less() -> None:
    weight, importance = normal(64, 128), torch.ones(128)
    importance[::4] = 100
    plain = integer.quantize(weight, Scheme(3, 128)).dequantized() - weight
    weighted = integer.quantize(weight, Scheme(3, 128), importance).dequantized() - weight
    assert (weighted.square() * importance).sum() < 0.99 * (plain.square() * importance).sum()
    assert weighted.square().sum() > plain.square().sum()


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_on_the_grid_comes_back_exactly(bits: int) -> None:
    scheme = Scheme(bits, 32)
    codes = torch.randint(scheme.low, -scheme.low, (8, 64), generator=torch.Generator().manual_seed(1))
    codes[:, ::32] = scheme.low  # every group reaches the end of its range
    weight = codes * 0.25
    assert torch.equal(integer.quantize(weight, scheme).dequantized(), weight)


def test_groups_of_zeros_and_of_one_value() -> None:
    weight = torch.zeros(2, 64)
    assert torch.equal(integer.quantize(weight, Scheme(4, 32)).dequantized(), weight)
    weight[:, 5] = 0.5
    assert torch.equal(integer.quantize(weight, Scheme(2, 32)).dequantized(), weight)


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        integer.quantize(torch.tensor([[float("nan")] * 32]), Scheme(4, 32))
    with pytest.raises(ValueError, match="not finite"):
        integer.quantize(torch.tensor([[1.0] * 31 + [float("inf")]]), Scheme(8, 32))
    with pytest.raises(ValueError, match="do not divide"):
        integer.quantize(torch.zeros(2, 48), Scheme(4, 32))
    with pytest.raises(ValueError, match="5 bits"):
        Scheme(5, 32)
    with pytest.raises(FamilyError, match="48 columns"):
        tables.group_for(48)


def test_the_largest_group_that_divides() -> None:
    assert [tables.group_for(columns) for columns in (4096, 64, 96, 192)] == [128, 64, 32, 64]
    assert tables.group_for(4096, 64) == 64


@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 130), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_packing_is_dense_and_comes_back(bits: int, rows: int, columns: int, seed: int) -> None:
    low = 1 << (bits - 1)
    codes = torch.randint(-low, low, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    words = integer.pack(codes, bits)
    assert words.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(words, pack_quantized.pack_to_int32(codes, bits))
    assert torch.equal(integer.unpack(words, bits, columns), codes)


@pytest.mark.parametrize("bits", BITS)
def test_compressed_tensors_writes_and_reads_the_same(bits: int) -> None:
    """Its own compressor, given our scales, packs the same words; what it unpacks is what we mean."""
    weight = normal(48, 192)
    rounded = integer.quantize(weight, Scheme(bits, 64))
    ours = rounded.tensors()
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=64)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = pack_quantized.PackedQuantizationCompressor
    again = {"weight": rounded.dequantized(), "weight_scale": rounded.scale.float()}  # it rounds to itself
    theirs = compressor.compress(again, scheme)
    assert set(theirs) == set(ours)
    for name in ("weight_packed", "weight_shape"):
        assert theirs[name].dtype == ours[name].dtype and torch.equal(theirs[name], ours[name])
    read = compressor.decompress({**ours, "weight_scale": rounded.scale.float()}, scheme)["weight"]
    assert torch.equal(read, rounded.dequantized())
    assert sum(t.nbytes for t in ours.values()) == tables.data_bytes(tables.packed(bits, 64)("weight", (48, 192)))
