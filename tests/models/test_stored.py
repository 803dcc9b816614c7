"""Models that are never loaded: surgery and copies from file to file equal those of loaded models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sordino.checkpoint.reading import INDEX, Checkpoint
from sordino.checkpoint.writing import FLOATING, Planned, Writer
from sordino.errors import ArtifactError, FamilyError
from sordino.models import loading, registry, saving, stored
from sordino.models.family import Family, Scope
from sordino.pruning import layers
from tests import tiny

KEPT: dict[str, dict[Scope, list[int]]] = {
    "decoder": {"decoder": [0, 3]},
    "encoder": {"encoder": [0, 1]},
    "both": {"decoder": [1, 2, 3], "encoder": [0, 2]},
    "all": {},
}


FAMILIES = sorted(registry.FAMILIES)


@pytest.fixture(scope="module", params=FAMILIES)
def source(
    request: pytest.FixtureRequest, pico_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A pico model in bfloat16 and in three shards or more."""
    directory = tmp_path_factory.mktemp("source")
    shutil.copytree(pico_dir(request.param), directory, dirs_exist_ok=True)
    reshard(directory, "BF16", 200_000)
    assert len(Checkpoint.open(directory).files) >= 3
    return directory


def reshard(directory: Path, dtype: str, most: int, rename: Callable[[str], str] = str) -> None:
    """Write a directory's weights again."""
    old = directory.with_name(directory.name + "-old")
    shutil.copytree(directory, old)
    before = Checkpoint.open(old)
    names = {rename(name): name for name in before.tensors}
    planned = {
        new: Planned(dtype if before.tensors[name].dtype in FLOATING else before.tensors[name].dtype, shape)
        for new, name in names.items()
        for shape in [before.tensors[name].shape]
    }
    with Writer(directory, planned, shard_bytes=most) as out:
        for new, name in names.items():
            out.copy(new, before, name)
    shutil.rmtree(old)


def in_memory(source: Path, kept: dict[Scope, list[int]], directory: Path) -> torch.Tensor:
    """What the same surgery on a loaded model saves. -> the model's logits."""
    speech = loading.load_checkpoint(str(source), device="cpu", dtype=torch.bfloat16)
    for scope, keep in kept.items():
        layers.prune(speech, scope, keep)
    found = tiny.logits(speech, tiny.ask(speech, [tiny.clip(1, 0.6)]))
    speech.model.to(torch.bfloat16)  # transformers keeps some tables of positions in 32 bits
    saving.save(speech, directory)
    return found


def streamed(source: Path, kept: dict[Scope, list[int]], directory: Path) -> None:
    model = stored.open_model(str(source))
    for scope, keep in kept.items():
        layers.prune(model.speech, scope, keep)
    directory.mkdir()
    model.write_16bit(directory, "test")


def of(family: Family, case: str) -> dict[Scope, list[int]]:
    """A case's layers, of the stacks that the family has."""
    return {scope: keep for scope, keep in KEPT[case].items() if scope in family.scopes}


@pytest.mark.parametrize(
    ("source", "case"),
    [(name, case) for name in FAMILIES for case in KEPT if case == "all" or of(registry.get(name), case)],
    indirect=["source"],
)
def test_surgery_on_files_equals_surgery_in_memory(source: Path, tmp_path: Path, case: str) -> None:
    kept = of(registry.family_of(str(source)), case)
    expected = in_memory(source, kept, tmp_path / "memory")
    streamed(source, kept, tmp_path / "files")
    assert (tmp_path / "files/model.safetensors").read_bytes() == (tmp_path / "memory/model.safetensors").read_bytes()
    for name in ("config.json", "generation_config.json"):
        one, other = (json.loads((tmp_path / way / name).read_text()) for way in ("files", "memory"))
        assert one == other, name
    assert sorted(p.name for p in (tmp_path / "files").iterdir()) == sorted(
        p.name for p in (tmp_path / "memory").iterdir()
    )
    loaded = loading.load_checkpoint(str(tmp_path / "files"), device="cpu", dtype=torch.bfloat16)
    inputs = tiny.ask(loaded, [tiny.clip(1, 0.6)])
    assert tiny.logits(loaded, inputs).equal(expected)


def test_a_32_bit_source_is_rounded_as_torch_rounds(pico_dir: Callable[[str], Path], tmp_path: Path) -> None:
    for family in registry.FAMILIES:
        one, other = tmp_path / f"{family}-files", tmp_path / f"{family}-memory"
        streamed(pico_dir(family), of(registry.get(family), "both"), one)
        in_memory(pico_dir(family), of(registry.get(family), "both"), other)
        types = {t.dtype for t in Checkpoint.open(one).tensors.values()}
        assert types <= {"BF16", "I64"}  # 64-bit integers: a batch norm's counter
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_names_are_those_that_transformers_saves_and_both_kinds_are_read(source: Path, tmp_path: Path) -> None:
    speech = loading.load_checkpoint(str(source), device="cpu")
    family = speech.family
    weights = speech.model.state_dict(keep_vars=True)
    live = set({id(tensor): name for name, tensor in reversed(weights.items())}.values())  # a tied weight once
    on_disk = set(Checkpoint.open(source).tensors)
    assert {family.tensors.saved_name(name) for name in live} == on_disk
    assert (
        {family.tensors.live_name(name) for name in on_disk}
        == live
        == {family.tensors.live_name(name) for name in live}
    )
    shutil.copytree(source, tmp_path / "live")
    reshard(tmp_path / "live", "BF16", 10**9, family.tensors.live_name)
    assert set(Checkpoint.open(tmp_path / "live").tensors) == live
    for name in ("live", "saved"):
        streamed(tmp_path / "live" if name == "live" else source, of(family, "both"), tmp_path / f"from-{name}")
    assert (tmp_path / "from-live/model.safetensors").read_bytes() == (
        tmp_path / "from-saved/model.safetensors"
    ).read_bytes()


def test_the_processors_files_are_copied_and_nothing_else(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "in")
    left = ["stage.json", "log.jsonl", "README.md", "optimizer.pt", "model.bin", ".hidden"]
    for name in left:
        (tmp_path / "in" / name).write_text("{}")
    streamed(tmp_path / "in", {}, tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        if file.name == "tokenizer_config.json":
            content = json.loads((source / file.name).read_text())
            if isinstance(content.get("extra_special_tokens"), list):
                content["additional_special_tokens"] = content.pop("extra_special_tokens")
            assert json.loads(file.read_text()) == content
        elif file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            assert file.read_bytes() == (source / file.name).read_bytes()
    assert not [name for name in left if (tmp_path / "out" / name).exists()]
    (tmp_path / "in" / "generation_config.json").unlink()
    shutil.rmtree(tmp_path / "out")
    streamed(tmp_path / "in", {}, tmp_path / "out")
    transformers.GenerationConfig.from_pretrained(tmp_path / "out")


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "copied")
    return tmp_path / "copied"


def edit_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


def test_damaged_models_are_refused_and_nothing_is_written(copied: Path, tmp_path: Path) -> None:
    second = Checkpoint.open(copied).files[1]

    def refused(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            streamed(copied, {}, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(error, match=message):
            loading.load_checkpoint(str(copied), device="cpu")

    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    refused(ArtifactError, f"{second} is truncated or damaged")
    shutil.copy(min(copied.glob("*.safetensors")), second)
    refused(ArtifactError, f"{second} (?:holds|lacks) '.*{INDEX} says otherwise")
    second.unlink()
    refused(ArtifactError, f"{second} is missing")
    second.write_bytes(whole)
    scope = registry.family_of(str(copied)).scopes[0]
    count = {"decoder": tiny.DECODER_LAYERS, "encoder": tiny.ENCODER_LAYERS}[scope]
    tiny.recount(copied, scope, range(count - 1))
    refused(FamilyError, "holds .* weights of layers that its config.json does not count")
    tiny.recount(copied, scope, [*range(count - 1), count - 2, count - 2])
    refused(FamilyError, "lacks .* weights that its config.json promises")
    tiny.recount(copied, scope, range(count))
    edit_config(copied, lambda config: config.get("text_config", config).update(intermediate_size=48))
    refused(FamilyError, "weights of other shapes|do not load: .*ignore_mismatched_sizes")


def test_what_cannot_be_copied_is_refused(copied: Path, tmp_path: Path) -> None:
    edit_config(copied, lambda config: config.update(quantization_config={"quant_method": "bitsandbytes"}))
    with pytest.raises(FamilyError, match="is quantized already"):
        stored.open_model(str(copied))
    core = registry.family_of(str(copied)).core
    edit_config(copied, lambda config: config.pop("quantization_config"))
    edit_config(copied, lambda config: core(config).get("text_config", config).update(hidden_size=[]))
    with pytest.raises(FamilyError, match=r"config\.json does not describe a model"):
        stored.open_model(str(copied))
    for name in stored.PROCESSOR_FILES[:2]:
        (copied / name).unlink(missing_ok=True)
    with pytest.raises(FamilyError, match=r"holds no processor_config\.json"):
        stored.open_model(str(copied))
    with pytest.raises(FamilyError, match="no model directory"):
        stored.open_model(str(tmp_path / "absent"))


def test_a_hub_id_is_its_snapshot(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cache as the Hub's client lays it out: no network here."""
    commit = "0" * 40
    cache = tmp_path / "hub" / "models--owner--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    shutil.copytree(source, cache / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = stored.open_model("owner/model")
    assert found.checkpoint.directory == cache / "snapshots" / commit
    assert stored.open_model("owner/model", commit).checkpoint.directory == found.checkpoint.directory
    with pytest.raises(FamilyError, match="neither a local directory nor a model that could be fetched"):
        stored.open_model("owner/other")
