"""nf4 written a matrix at a time: what transformers writes of a model that it quantized while loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sordino.checkpoint import writing
from sordino.checkpoint.reading import Checkpoint
from sordino.errors import FamilyError
from sordino.formats import bf16, nf4
from sordino.layouts import tables
from sordino.measure.audit import audit
from sordino.models import loading, registry, saving, shapes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", params=sorted(registry.FAMILIES))
def exported(
    request: pytest.FixtureRequest, pico_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A model of each family, and its export."""
    directory, source = tmp_path_factory.mktemp("nf4"), pico_dir(request.param)
    nf4.write(str(source), directory)
    return source, directory


def test_it_is_what_transformers_saves(exported: tuple[Path, Path], tmp_path: Path) -> None:
    source, directory = exported
    speech = loading.load_checkpoint(str(source), device="cpu", dtype=torch.bfloat16, quantize="nf4")
    for parameter in speech.model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(torch.bfloat16)
    saving.save(speech, tmp_path)
    ours, theirs = load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].equal(tensor), name
    for name in ("config.json", "generation_config.json"):
        assert json.loads((directory / name).read_text()) == json.loads((tmp_path / name).read_text())


def test_no_byte_is_wasted_and_the_size_is_the_planned_one(exported: tuple[Path, Path]) -> None:
    source, directory = exported
    assert audit(directory).findings == ()
    planned = tables.stored(shapes.model(json.loads((source / "config.json").read_text())).tensors, "nf4")
    size = (directory / "model.safetensors").stat().st_size
    assert size == pytest.approx(tables.safetensors_bytes(planned), rel=0.01)


def test_shards_load_as_one_file_does(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, directory = exported
    monkeypatch.setattr(writing.Writer.__init__, "__kwdefaults__", {"shard_bytes": 100_000, "stem": "model"})
    nf4.write(str(source), tmp_path)
    assert len(Checkpoint.open(tmp_path).files) > 2
    one, other = (loading.load_checkpoint(str(path), device="cpu").model.state_dict() for path in (directory, tmp_path))
    assert one.keys() == other.keys()
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


def test_a_quantized_source_is_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    for module in (nf4, bf16):
        with pytest.raises(FamilyError, match="quantized already"):
            module.write(str(exported[1]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_cut_short_is_written_again(exported: tuple[Path, Path], tmp_path: Path) -> None:
    source, directory = exported
    shutil.copytree(directory, tmp_path / "again")
    (tmp_path / "again" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "again" / "model-00001-of-00002.safetensors").write_bytes(b"of another plan")
    nf4.write(str(source), tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(p.name for p in directory.iterdir())
    assert (tmp_path / "again/model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
