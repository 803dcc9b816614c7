"""What is Qwen2.5-Omni's own: the layout around the thinker, the talker left aside, what a generation leaves behind."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sordino.errors import FamilyError
from sordino.formats import registry as formats
from sordino.models import adapters, loading, registry, saving, shapes, stored
from sordino.models.family import Prompt
from sordino.models.features import Features, encoder_hash
from sordino.models.generation import generate
from sordino.models.qwen2_5_omni import QWEN2_5_OMNI
from sordino.models.speech import SpeechModel
from tests import tiny
from tests.data import sounds

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def omni(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return tiny.fresh(pico("qwen2_5_omni"))


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def test_the_prompt_is_the_templates(omni: SpeechModel) -> None:
    text = QWEN2_5_OMNI.chat.render(omni.processor, Prompt("Translate:", system="You translate."))
    assert text == (
        "<|im_start|>system\nYou translate.<|im_end|>\n<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>Translate:"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert QWEN2_5_OMNI.chat.render(omni.processor, Prompt("Go.", style="base")) == (
        "<|audio_bos|><|AUDIO|><|audio_eos|>Go."
    )


def test_positions_of_audio_are_those_of_text(omni: SpeechModel) -> None:
    """Three equal rows, counted up from the first token that is no padding."""
    expected = tiny.stock_inputs(omni, tiny.clip(1, 1.3), "Go.")
    rows, delta = omni.model.get_rope_index(
        expected["input_ids"],
        attention_mask=expected["attention_mask"],
        audio_seqlens=expected["feature_attention_mask"].sum(-1),
    )
    length = expected["input_ids"].shape[1]
    assert torch.equal(rows.long(), torch.arange(length).expand(3, 1, length))
    assert int(delta) == 0


def test_a_generation_leaves_nothing_behind(omni: SpeechModel) -> None:
    inputs = tiny.ask(omni, [tiny.clip(1, 1.0)])
    expected = tiny.logits(omni, inputs)
    prompt = QWEN2_5_OMNI.chat.render(omni.processor, tiny.QUESTION)
    features = Features(omni, None)
    pair = [features.encode_waveform(sounds.clip(name), tiny.clip(2, 0.7), prompt) for name in "ab"]
    generate(omni, pair, 3)
    assert omni.model.model.rope_deltas is None
    assert torch.equal(tiny.logits(omni, inputs), expected)


def test_long_silence_behind_a_clip_need_not_be_heard(omni: SpeechModel) -> None:
    """The features of a batch are those of clips alone, each filled up to the window by the stock extractor."""
    clips = [tiny.clip(1, 0.3), tiny.clip(2, 2.0), tiny.clip(3, 4.0)]
    mel, frames = tiny.ask(omni, clips).audio
    for row, count, wave in zip(mel, frames, clips, strict=True):
        stock = tiny.stock_inputs(omni, wave, "Go.")
        assert torch.equal(row[:, : int(count)], stock["input_features"][0, :, : int(count)])
        assert int(count) == int(stock["feature_attention_mask"].sum())


def test_clips_heard_at_once_are_not_mixed_up(omni: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that leave the last norm together, which a hook shared between them would not tell apart."""
    heard = [tiny.ask(omni, [tiny.clip(seed, 1.0)]) for seed in (1, 2)]
    expected = [omni.states(inputs)[0] for inputs in heard]
    norm, together = omni.model.model.audio_tower.ln_post, threading.Barrier(2)
    plain = norm.forward

    def waiting(states: torch.Tensor) -> torch.Tensor:
        together.wait()
        normed = plain(states)
        together.wait()
        return normed

    monkeypatch.setattr(norm, "forward", waiting)
    with ThreadPoolExecutor(2) as pool:
        states = [rows[0] for rows in pool.map(omni.states, heard)]
    assert not torch.equal(*expected)
    assert all(map(torch.equal, states, expected))


def test_the_layout_around_it_is_the_published_one(omni: SpeechModel, tmp_path: Path) -> None:
    saving.save(omni, tmp_path / "saved")
    (tmp_path / "bf16").mkdir()
    stored.open_model(omni.path).write_16bit(tmp_path / "bf16", "test")
    (tmp_path / "nf4").mkdir()
    formats.get("nf4").write(omni.path, tmp_path / "nf4")
    for directory in tmp_path.iterdir():
        config = config_of(directory)
        assert config["model_type"] == "qwen2_5_omni"
        assert config["architectures"] == ["Qwen2_5OmniModel"]
        assert config["enable_audio_output"] is False
        assert config["thinker_config"]["model_type"] == "qwen2_5_omni_thinker"
        assert config["tie_word_embeddings"] is False
        assert all(name.startswith("thinker.") for name in load_file(directory / "model.safetensors"))
        assert isinstance(transformers.AutoConfig.from_pretrained(directory), transformers.Qwen2_5OmniConfig)
    quantized = config_of(tmp_path / "nf4")  # engines look outside, transformers' thinker class inside
    assert quantized["quantization_config"] == quantized["thinker_config"]["quantization_config"]


def test_what_speaks_is_left_aside_and_counted(
    omni: SpeechModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the published files: a talker and a vocoder, with layers of their own."""
    shutil.copytree(omni.path, tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    spoken = {
        "talker.model.layers.3.mlp.up_proj.weight": torch.ones(6, 4, dtype=torch.bfloat16),
        "token2wav.code2wav_bigvgan_model.conv_pre.weight": torch.ones(5),
    }
    save_file({**tensors, **spoken}, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    loaded = loading.load_checkpoint(str(tmp_path / "model"), device="cpu", dtype="float32")
    inputs = tiny.ask(omni, [tiny.clip(1, 1.0)])
    assert torch.equal(tiny.logits(loaded, inputs), tiny.logits(omni, inputs))
    model = stored.open_model(str(tmp_path / "model"))
    assert model.ignored == {"talker.": (1, 48), "token2wav.": (1, 20)}
    (tmp_path / "copy").mkdir()
    model.write_16bit(tmp_path / "copy", "test")
    assert load_file(tmp_path / "copy/model.safetensors").keys() == tensors.keys()
    assert "left out: talker (1 weights, 0.00 GB), token2wav (1 weights, 0.00 GB)" in capsys.readouterr().err


def test_a_bare_thinker_is_read_too(omni: SpeechModel, tmp_path: Path) -> None:
    """As transformers saves it, under its own names."""
    omni.model.save_pretrained(tmp_path)
    omni.processor.save_pretrained(str(tmp_path))
    assert config_of(tmp_path)["model_type"] == "qwen2_5_omni_thinker"
    loaded = loading.load_checkpoint(str(tmp_path), device="cpu", dtype="float32")
    inputs = tiny.ask(omni, [tiny.clip(1, 1.0)])
    assert torch.equal(tiny.logits(loaded, inputs), tiny.logits(omni, inputs))
    (tmp_path / "copy").mkdir()
    stored.open_model(str(tmp_path)).write_16bit(tmp_path / "copy", "test")
    assert set(load_file(tmp_path / "copy/model.safetensors")) == set(load_file(Path(omni.path) / "model.safetensors"))
    assert shapes.model(config_of(tmp_path)).parameters == shapes.model(config_of(Path(omni.path))).parameters


def test_the_projector_is_trained_beside_a_frozen_encoder(omni: SpeechModel) -> None:
    from sordino.config.schema import TrainSection
    from sordino.training.trainer import freeze

    omni.model.requires_grad_(True)
    before = encoder_hash(omni)
    freeze(omni, TrainSection(freeze=("encoder",)))
    trained = {name for name, p in omni.model.named_parameters() if p.requires_grad and "audio_tower" in name}
    assert trained == {"model.audio_tower.proj.weight", "model.audio_tower.proj.bias"}
    with torch.no_grad():
        omni.part("projector").weight.add_(1)  # type: ignore[operator, union-attr]
    assert encoder_hash(omni) == before
    with torch.no_grad():
        omni.part("encoder").ln_post.weight.add_(1)  # type: ignore[operator, union-attr]
    assert encoder_hash(omni) != before


def test_what_sees_is_neither_trained_nor_adapted(omni: SpeechModel) -> None:
    assert not any(p.requires_grad for n, p in omni.model.named_parameters() if n.startswith("model.visual."))
    assert not any(name.startswith("model.visual.") for name in adapters.targets(omni, "all"))


def test_another_processor_is_refused(omni: SpeechModel, tmp_path: Path) -> None:
    shutil.copytree(omni.path, tmp_path / "model")
    file = tmp_path / "model/preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor_class": "Qwen2AudioProcessor"}))
    with pytest.raises(FamilyError, match="is a Qwen2AudioProcessor, and this model needs Qwen2_5OmniProcessor"):
        loading.load_checkpoint(str(tmp_path / "model"), device="cpu")


def test_both_names_are_one_family() -> None:
    assert registry.get("qwen2_5_omni_thinker") is registry.get("qwen2_5_omni") is QWEN2_5_OMNI
