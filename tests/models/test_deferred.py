"""Models whose weights are read later: the same models as those that are loaded whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sordino.errors import FamilyError
from sordino.models import loading, registry, saving
from sordino.models.speech import SpeechModel
from tests.tiny import is_tied


def tensors(speech: SpeechModel) -> dict[str, Tensor]:
    """All weights by all their names, and all buffers, also those that no file holds."""
    weights: dict[str, Tensor] = dict(speech.model.named_parameters(remove_duplicate=False))
    return weights | dict(speech.model.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_what_is_read_later_is_what_stock_loading_makes(
    pico_dir: Callable[[str], Path], family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    stock = loading.load_checkpoint(str(pico_dir(family)), device="cpu", dtype=dtype)
    late = loading.open_deferred(str(pico_dir(family)), device="cpu", dtype=dtype)
    assert all(weight.is_meta for weight in late.model.parameters())
    assert late.device == stock.device
    assert late.deferred
    late.deferred.fill(late.model)
    expected, read = tensors(stock), tensors(late)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype, name
        assert read[name].requires_grad == tensor.requires_grad, name
        assert read[name].equal(tensor), name
    assert is_tied(late) == is_tied(stock)
    for way, speech in (("stock", stock), ("late", late)):
        saving.save(speech, tmp_path / way)
    for file in (tmp_path / "stock").iterdir():
        assert (tmp_path / "late" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_weight_is_read_in_rows_and_parts_are_read_alone(model_dir: Path) -> None:
    speech = loading.open_deferred(str(model_dir), device="cpu", dtype="bfloat16")
    stock = loading.load_checkpoint(str(model_dir), device="cpu", dtype="bfloat16")
    assert speech.deferred
    for name, weight in stock.model.named_parameters():
        ends = [0, len(weight) // 3, len(weight)]
        rows = [speech.deferred.read(name, weight, pair) for pair in pairwise(ends)]
        assert torch.cat(rows).equal(weight), name
    loading.read_parts(speech, ["encoder"])
    encoder = {id(tensor) for tensor in speech.tensors_of("encoder").values()}
    for name, weight in speech.model.named_parameters():
        assert weight.is_meta == (id(weight) not in encoder), name


def test_a_part_that_is_no_number_is_refused(model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    file, name = tmp_path / "model/model.safetensors", "audio_tower.layer_norm.weight"
    weights = load_file(file)
    weights[name][0] = float("inf")
    save_file(weights, file, {"format": "pt"})
    speech = loading.open_deferred(str(tmp_path / "model"), device="cpu", dtype="float32")
    loading.read_parts(speech, ["projector"])
    with pytest.raises(FamilyError, match=f"weights '{name}' hold NaN or infinity"):
        loading.read_parts(speech, ["encoder"])
