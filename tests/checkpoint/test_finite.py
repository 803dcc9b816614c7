"""Weights that are no numbers are named, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sordino.checkpoint.finite import is_finite, refuse_nonfinite, refuse_stored_nonfinite
from sordino.checkpoint.reading import Checkpoint
from sordino.errors import FamilyError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e5m2])
def test_one_bad_number_is_found(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    good = torch.linspace(-3, 3, 300).reshape(3, 100).to(dtype)
    tensors = {"a.weight": good, "b.weight": good.clone(), "steps": torch.arange(5)}
    refuse_nonfinite("model", tensors.items())
    tensors["b.weight"][1, 57] = bad
    with pytest.raises(FamilyError, match=r"^model: the weights 'b\.weight' hold NaN or infinity"):
        refuse_nonfinite("model", tensors.items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_bad_number_is_found_on_disk(
    tmp_path: Path, bad: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sordino.checkpoint.finite.CHUNK_BYTES", 64)  # the number lies in the last chunk
    tensors = {"a.weight": torch.ones(100, dtype=dtype), "b.weight": torch.ones(100, dtype=dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    refuse_stored_nonfinite(Checkpoint.open(tmp_path))
    tensors["b.weight"][99] = bad
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FamilyError, match=rf"^{tmp_path}: the weights 'b\.weight'"):
        refuse_stored_nonfinite(Checkpoint.open(tmp_path))


def test_what_is_no_number_at_all_is_fine() -> None:
    assert is_finite(torch.empty(0))
    assert is_finite(torch.tensor(3.5))
    assert is_finite(torch.full((2,), 65504.0, dtype=torch.float16))
    assert is_finite(torch.tensor([2**62, -1]))
    assert is_finite(torch.empty(5, device="meta"))
    assert not is_finite(torch.tensor(float("nan")))
