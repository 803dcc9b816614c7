"""Shapes from config.json alone, against what transformers and peft save."""

import json

import pytest
import torch
import transformers

from sordino.checkpoint.reading import read_header
from sordino.errors import FamilyError
from sordino.measure.size import measure
from sordino.models import adapters, registry, shapes
from tests import tiny

QWEN2_AUDIO_7B = {  # as published: what equals the class's defaults is left out
    "model_type": "qwen2_audio",
    "text_config": {"model_type": "qwen2", "intermediate_size": 11008, "vocab_size": 156_032},
    "audio_config": {"model_type": "qwen2_audio_encoder", "d_model": 1280, "encoder_layers": 32},
}


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("family", list(registry.FAMILIES))
def test_names_and_shapes_are_those_that_transformers_saves(pico_dir, family):
    header = read_header(pico_dir(family) / "model.safetensors")
    found = shapes.model(config_of(pico_dir(family)))
    assert {tensor.name: tensor.shape for tensor in found.tensors} == {n: t.shape for n, t in header.items()}
    assert found.parameters == measure(pico_dir(family)).logical_parameters


@pytest.mark.parametrize("family", list(registry.FAMILIES))
def test_defaults_are_those_of_the_class(family):
    """A config of nothing but its type, which is a model of billions, on the meta device."""
    name = registry.get(family).model_class
    config = getattr(transformers, name).config_class()
    with torch.device("meta"):
        real = getattr(transformers, name)(config)
    tensors = {id(tensor): tensor.numel() for tensor in real.state_dict(keep_vars=True).values()}  # a tied one once
    assert shapes.model({"model_type": family}).parameters == sum(tensors.values())


@pytest.mark.parametrize("family", list(registry.FAMILIES))
def test_linear_weights_are_the_linear_layers_without_the_head(pico, pico_dir, family):
    speech = pico(family)
    real = sorted(tuple(m.weight.shape) for n, m in speech.model.named_modules() if type(m) is torch.nn.Linear)
    real.remove(tuple(speech.model.get_output_embeddings().weight.shape))
    found = shapes.model(config_of(pico_dir(family))).tensors
    assert sorted(tensor.shape for tensor in found if tensor.kind == "linear") == real


@pytest.mark.parametrize("scope", ["all", "decoder"])
@pytest.mark.parametrize("family", list(registry.FAMILIES))
def test_adapters(pico, pico_dir, family, scope, tmp_path):
    peft_model = adapters.attach(tiny.fresh(pico(family)), adapters.LoraOptions(r=3, scope=scope), seed=0)
    adapters.save(peft_model, tmp_path, "base")
    found = shapes.lora(shapes.model(config_of(pico_dir(family))), 3, decoder_only=scope == "decoder")
    header = read_header(tmp_path / adapters.WEIGHTS)
    assert {tensor.name: tensor.shape for tensor in found} == {n: t.shape for n, t in header.items()}


def test_qwen2_audio_7b():
    model = shapes.model(QWEN2_AUDIO_7B)
    assert model.parameters == 8_397_094_912
    assert shapes.count(t for t in model.tensors if ".layers.7." in t.name and t.part == "decoder") == 202_395_648
    assert shapes.model(QWEN2_AUDIO_7B, decoder_layers=24).parameters == 6_777_929_728
    assert sum(tensor.elements for tensor in model.tensors if tensor.part in ("head", "embedding")) == 1_278_214_144
    adapter = shapes.count(shapes.lora(model, 64))
    assert adapter == 207_437_824
    assert f"{adapter / (adapter + model.parameters):.2%}" == "2.41%"


def test_a_tied_head_is_not_stored():
    plain = {"model_type": "qwen2_audio", "text_config": {"vocab_size": 1000, "hidden_size": 64}}
    tied = {**plain, "text_config": {**plain["text_config"], "tie_word_embeddings": True}}
    assert shapes.model(plain).parameters - shapes.model(tied).parameters == 64_000
    assert not [tensor for tensor in shapes.model(tied).tensors if tensor.kind == "head"]


def test_what_is_unknown_is_refused():
    with pytest.raises(
        FamilyError, match=r"models of type 'whisper' are not supported; supported: .*qwen2_audio, .*voxtral"
    ):
        shapes.model({"model_type": "whisper"})
    with pytest.raises(FamilyError, match=r"text_config\.vocab_size is 'many'"):
        shapes.model({"model_type": "voxtral", "text_config": {"vocab_size": "many"}})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "vocab_size", 0),
        ("text_config", "hidden_size", 0),
        ("text_config", "num_attention_heads", 0),
        ("text_config", "num_key_value_heads", 0),
        ("audio_config", "d_model", 0),
        ("audio_config", "num_mel_bins", 0),
        ("text_config", "num_hidden_layers", "32"),
        ("text_config", "vocab_size", -1),
        ("text_config", "vocab_size", 1.5),
        ("text_config", "vocab_size", [["x"] * 10**5] * 100),
    ],
)
def test_sizes_that_no_model_has(section, key, value):
    with pytest.raises(FamilyError, match=rf"{section}\.{key} is ") as caught:
        shapes.model({"model_type": "qwen2_audio", section: {key: value}})
    assert len(str(caught.value)) < 300


def test_a_model_may_have_no_layers():
    assert shapes.model({"model_type": "qwen2_audio", "text_config": {"num_hidden_layers": 0}}).parameters > 0
