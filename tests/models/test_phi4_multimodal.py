"""What is Phi-4-multimodal's own: its LoRA in a folder of its own, short clips, one clip at a time, its layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sordino.errors import FamilyError
from sordino.models import adapters, embedded, loading, registry, saving, stored
from sordino.models.family import Prompt
from sordino.models.phi4_multimodal import ADAPTER_FOLDER, FRAME, audio_tokens
from sordino.models.speech import SpeechModel
from tests import tiny

LORA = 4  # rank


@pytest.fixture
def phi(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return tiny.fresh(pico("phi4_multimodal"))


class Published:
    """A directory as it is published: base, LoRAs in folders, nothing in config.json; and peft's logits with one."""

    def __init__(self, phi: SpeechModel, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(phi.path, directory)
        model = tiny.fresh(phi)
        self.inputs = tiny.ask(model, [tiny.clip(1, 1.0)])
        self.base = tiny.logits(model, self.inputs)
        options = adapters.LoraOptions(r=LORA, alpha=2 * LORA, rslora=False, scope="decoder")
        adapter = adapters.attach(model, options, seed=0)
        tiny.stir(model)
        self.logits = tiny.logits(model, self.inputs)
        adapters.save(adapter, directory / ADAPTER_FOLDER, "")
        shutil.copytree(directory / ADAPTER_FOLDER, directory / "vision-lora")
        config = json.loads((directory / "config.json").read_text())
        del config["has_lora_adapter"]
        (directory / "config.json").write_text(json.dumps(config))


def test_the_lora_for_speech_is_merged_in_memory_and_from_file_to_file(phi: SpeechModel, tmp_path: Path) -> None:
    made = Published(phi, tmp_path / "model")
    loaded = loading.load_checkpoint(str(made.directory), device="cpu", dtype="float32")
    torch.testing.assert_close(tiny.logits(loaded, made.inputs), made.logits, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(made.logits, made.base, atol=1e-1)
    (tmp_path / "files").mkdir()
    stored.open_model(str(made.directory)).write_16bit(tmp_path / "files", "test")
    loaded.model.to(torch.bfloat16)
    saving.save(loaded, tmp_path / "memory")
    one, other = (load_file(tmp_path / way / "model.safetensors") for way in ("files", "memory"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for way in ("files", "memory"):
        assert json.loads((tmp_path / way / "config.json").read_text())["has_lora_adapter"] is False
        assert not list((tmp_path / way).glob("*-lora"))
        again = loading.load_checkpoint(str(tmp_path / way), device="cpu", dtype="float32")
        assert torch.equal(again.model.state_dict()["model.layers.1.mlp.down_proj.weight"],
                           one["model.layers.1.mlp.down_proj.weight"].float())  # fmt: skip


def test_weights_without_the_lora_are_refused(phi: SpeechModel, tmp_path: Path) -> None:
    made = Published(phi, tmp_path / "model")
    (made.directory / ADAPTER_FOLDER / embedded.WEIGHTS).unlink()
    with pytest.raises(FamilyError, match=r"and there is no speech-lora/adapter_model\.safetensors.*to false where it"):
        loading.load_checkpoint(str(made.directory), device="cpu")
    with pytest.raises(FamilyError, match="there is no speech-lora"):
        stored.open_model(str(made.directory))


def test_another_adapter_beside_the_weights_is_refused(phi: SpeechModel, tmp_path: Path) -> None:
    made = Published(phi, tmp_path / "model")
    shutil.copy(made.directory / ADAPTER_FOLDER / embedded.CONFIG, made.directory)
    with pytest.raises(FamilyError, match="holds a whole model"):
        loading.load_checkpoint(str(made.directory), device="cpu")


def test_the_layout_with_code_of_its_own_is_refused_with_the_other_one() -> None:
    with pytest.raises(FamilyError, match=r"phi4mm.*never run.*revision: refs/pr/70"):
        registry.of_config({"model_type": "phi4mm", "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4MMConfig"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_config": {"chunk_size": 18}}, "chunk_size 18 is not supported, only -1"),
        ({"audio_config": {"time_reduction": 4}}, "time_reduction 4 is not supported, only 8"),
        ({"sliding_window": 2047}, "sliding_window below 4096 is not supported"),
    ],
)
def test_encoders_of_other_rates_and_short_windows_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FamilyError, match=message):
        registry.of_config({"model_type": "phi4_multimodal", **change})


@pytest.mark.parametrize("samples", [1, FRAME - 1, FRAME, FRAME + 159, FRAME + 160 * 7, FRAME + 160 * 8])
def test_short_clips_have_a_token(phi: SpeechModel, samples: int) -> None:
    inputs = tiny.ask(phi, [np.ones(samples, np.float32) / 10])
    assert len(tiny.features(phi, inputs)[0]) == audio_tokens(samples) == (2 if samples == FRAME + 160 * 8 else 1)


def test_the_prompt_is_the_page_s(phi: SpeechModel) -> None:
    render = phi.family.chat.render
    assert render(phi.processor, Prompt("Translate.")) == "<|user|><|audio|>Translate.<|end|><|assistant|>"
    told = render(phi.processor, Prompt("Translate.", system="Be brief.", example=("Hi.", "Hallo.")))
    assert told == (
        "<|system|>Be brief.<|end|><|user|>Translate. Hi.<|end|><|assistant|>Hallo.<|end|>"
        "<|user|><|audio|>Translate.<|end|><|assistant|>"
    )
