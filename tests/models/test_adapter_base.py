"""An adapter opens on the model that it was trained on, wherever the run lies, and on no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sordino.errors import ArtifactError, FamilyError
from sordino.models import adapter_base, loading
from tests import tiny
from tests.stages.runs import Made, refusal

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Path:
    """A copy of the finished run's adapter and base, somewhere else."""
    for name in ("60-student", "61-adapter", "40-pruned"):
        shutil.copytree(made.finished / name, tmp_path / "moved" / name)
    return tmp_path / "moved"


def of_before(adapter: Path) -> None:
    """stage.json as it was before it had a hash of the base's weights."""
    stage = json.loads((adapter / "stage.json").read_text())
    del stage["base_weights"]
    (adapter / "stage.json").write_text(json.dumps(stage))


def refused(adapter: Path) -> None:
    with pytest.raises(ArtifactError, match=r"61-adapter was trained on other weights than .*60-student holds now"):
        loading.open_model(str(adapter), device="cpu")


@pytest.mark.parametrize("old", [False, True])
def test_a_moved_run_opens(made: Made, run: Path, old: bool) -> None:
    if old:
        of_before(run / "61-adapter")
    (run / "60-student" / "README.md").write_text("A note.")
    moved = loading.open_model(str(run / "61-adapter"), device="cpu", dtype="float32")
    there = loading.open_model(str(made.finished / "61-adapter"), device="cpu", dtype="float32")
    inputs = tiny.ask(moved, [tiny.clip(1, 0.6)])
    assert torch.equal(tiny.logits(moved, inputs), tiny.logits(there, inputs))


@pytest.mark.parametrize("old", [False, True])
def test_another_model_in_its_place_is_refused(made: Made, run: Path, old: bool, capsys: Capsys) -> None:
    """Of the same shapes, so that nothing else would notice."""
    adapter = run / "61-adapter"
    if old:
        of_before(adapter)
    shutil.rmtree(run / "60-student")
    shutil.copytree(run / "40-pruned", run / "60-student")
    refused(adapter)
    clip = next(made.corpus.glob("*.flac"))
    assert "was trained on other weights" in refusal(capsys, "translate", adapter, clip)


@pytest.mark.parametrize("old", [False, True])
def test_changed_weights_are_refused(run: Path, old: bool) -> None:
    """Though stage.json beside them says what it said."""
    if old:
        of_before(run / "61-adapter")
    weights = run / "60-student" / "model.safetensors"
    tensors = load_file(weights)
    tensors["language_model.lm_head.weight"][0, 0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    refused(run / "61-adapter")


def test_an_adapter_on_a_base_model_outside_of_the_run(made: Made, tmp_path: Path) -> None:
    """Its record of before has the hash of all of the base model's files."""
    from tests.stages.runs import recipe_file
    from tests.stages.runs import run as command

    model = tmp_path / "model"
    shutil.copytree(made.model, model)
    sections = ("finetune", "rank", "prune", "pseudolabel", "distil", "merge", "trim", "export", "translate")
    changes: dict[str, object] = dict.fromkeys((*sections, "evaluate", "report"))
    changes["qlora"] = {"start": "base", "mix": {"pseudo": False}}
    command("run", recipe_file(tmp_path, model, made.corpus, changes))
    adapter = tmp_path / "runs" / "run" / "61-adapter"
    for old in (False, True):
        if old:
            of_before(adapter)
        loading.open_model(str(adapter), device="cpu")
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    tensors["language_model.lm_head.weight"][0, 0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="was trained on other weights"):
        loading.open_model(str(adapter), device="cpu")


def test_merging_asks_too(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    recipe = made.copied(tmp_path, {"translate": False, "evaluate": False, "report": False})
    run = tmp_path / "runs" / "run"
    shutil.rmtree(run / "62-merged")
    shutil.rmtree(run / "60-student")
    shutil.copytree(run / "40-pruned", run / "60-student")
    assert "61-adapter was trained on other weights" in refusal(capsys, "merge", recipe)


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"complete": true}', '{"complete": true, "section": null}'])
def test_a_record_that_is_none(run: Path, content: str) -> None:
    (run / "61-adapter" / "stage.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"stage\.json"):
        loading.open_model(str(run / "61-adapter"), device="cpu")


def test_the_record_of_another_stage(run: Path) -> None:
    shutil.copy(run / "60-student" / "stage.json", run / "61-adapter")
    with pytest.raises(ArtifactError, match=r"holds an adapter, and no stage\.json of the stage that trained it"):
        loading.open_model(str(run / "61-adapter"), device="cpu")


@pytest.mark.parametrize("base", [None, 3, [], "../70-gone", ""])
def test_a_base_that_is_not_there(run: Path, base: object, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run / "61-adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": base}))
    monkeypatch.chdir(run / "60-student")  # a relative base is never looked for from here
    (run / "70-gone").mkdir()
    (run / "70-gone").rmdir()
    with pytest.raises((ArtifactError, FamilyError)):
        loading.open_model(str(run / "61-adapter"), device="cpu")


def test_peft_finds_the_class_and_the_base(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoPeftModel and stock from_pretrained, from the adapter's directory, where its base's path is relative to."""
    import peft
    import transformers

    ours = loading.open_model(str(run / "61-adapter"), device="cpu", dtype="float32")
    inputs = tiny.ask(ours, [tiny.clip(1, 0.6)])
    monkeypatch.chdir(run / "61-adapter")
    auto = peft.AutoPeftModel.from_pretrained(".", dtype=torch.float32).eval()
    stock = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(".", dtype=torch.float32).eval()
    plain = loading.load_checkpoint(str(run / "60-student"), device="cpu", dtype="float32")
    texts = []
    for model in (auto.base_model.model, stock):
        plain.model = model
        texts.append(tiny.logits(plain, inputs))
    assert torch.equal(*texts)
    assert not torch.equal(
        texts[0], tiny.logits(loading.load_checkpoint(str(run / "60-student"), device="cpu"), inputs)
    )


def test_a_hash_of_weights_tells_of_nothing_else(run: Path, pico_dir: Callable[[str], Path]) -> None:
    before = adapter_base.weights_hash(str(run / "60-student"))
    (run / "60-student" / "sordino.json").unlink()
    assert adapter_base.weights_hash(str(run / "60-student")) == before
    assert adapter_base.weights_hash(str(pico_dir("qwen2_audio"))) != before
