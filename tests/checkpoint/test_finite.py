"""Weights that are no numbers are named, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sordino.checkpoint.finite import is_finite, refuse_nonfinite
from sordino.checkpoint.reading import Checkpoint
from sordino.checkpoint.writing import Planned, Writer
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
@pytest.mark.parametrize("planned", ["BF16", "F32"])
def test_no_copy_from_file_to_file_has_one(
    tmp_path: Path, bad: float, dtype: torch.dtype, planned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte and cast alike; the number lies in the last chunk."""
    monkeypatch.setattr("sordino.checkpoint.writing.CHUNK_BYTES", 64)

    def copy() -> None:
        stored = Checkpoint.open(tmp_path)
        with Writer(tmp_path / "copy", {"b.weight": Planned(planned, (100,))}) as out:
            out.copy("b.weight", stored, "b.weight")

    (tmp_path / "copy").mkdir()
    tensors = {"b.weight": torch.ones(100, dtype=dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    copy()
    tensors["b.weight"][99] = bad
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FamilyError, match=rf"^{tmp_path}: the weights 'b\.weight'"):
        copy()


def test_a_number_that_the_type_to_be_written_does_not_hold(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1.0, 3.4e38])}, tmp_path / "model.safetensors")
    (tmp_path / "copy").mkdir()
    out = Writer(tmp_path / "copy", {"a": Planned("BF16", (2,))})
    with pytest.raises(FamilyError, match="the weights 'a' hold NaN or infinity"), out:
        out.copy("a", Checkpoint.open(tmp_path), "a")


def test_what_is_no_number_at_all_is_fine() -> None:
    assert is_finite(torch.empty(0))
    assert is_finite(torch.tensor(3.5))
    assert is_finite(torch.full((2,), 65504.0, dtype=torch.float16))
    assert is_finite(torch.tensor([2**62, -1]))
    assert is_finite(torch.empty(5, device="meta"))
    assert not is_finite(torch.tensor(float("nan")))
