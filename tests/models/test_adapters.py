"""Adapters: reproducible, stored whole, refused in part, merged with one rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sordino.errors import ArtifactError, FamilyError
from sordino.models import adapters
from sordino.models.speech import SpeechModel
from sordino.pruning import layers
from tests import tiny

OPTIONS = adapters.LoraOptions(r=4, alpha=8)


@pytest.fixture
def adapter(speech: SpeechModel, tmp_path: Path) -> Path:
    """A stored adapter that has an effect."""
    model = adapters.attach(speech, OPTIONS, seed=0)
    tiny.stir(speech)
    adapters.save(model, tmp_path / "adapter", "../40-pruned")
    adapters.merge(speech)
    return tmp_path / "adapter"


@pytest.fixture
def base(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return tiny.fresh(pico("qwen2_audio"))


def test_targets_are_the_linear_layers_but_the_head(speech: SpeechModel) -> None:
    every, decoder = adapters.targets(speech, "all"), adapters.targets(speech, "decoder")
    linear = [name for name, module in speech.model.named_modules() if isinstance(module, nn.Linear)]
    assert sorted([*every, speech.family.parts["head"]]) == sorted(linear)
    assert len(decoder) == 7 * tiny.DECODER_LAYERS
    assert len(every) == len(decoder) + 6 * tiny.ENCODER_LAYERS + 1
    assert set(decoder) < set(every)


def test_the_same_seed_gives_the_same_adapter(pico: Callable[[str], SpeechModel], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(name) % 1000)  # the caller's generator plays no part
        state = torch.get_rng_state()
        adapters.save(adapters.attach(tiny.fresh(pico("qwen2_audio")), OPTIONS, seed), tmp_path / name, "base")
        assert torch.equal(torch.get_rng_state(), state)
    files = {name: [(tmp_path / name / f).read_bytes() for f in (adapters.WEIGHTS, adapters.CONFIG)] for name in "abc"}
    assert files["a"] == files["b"]
    assert files["a"][0] != files["c"][0]
    assert files["a"][1] == files["c"][1]


def test_scaling_is_rank_stabilised_on_request(base: SpeechModel, pico: Callable[[str], SpeechModel]) -> None:
    for speech, rslora, scaling in ((base, True, 8 / 2), (tiny.fresh(pico("qwen2_audio")), False, 8 / 4)):
        adapters.attach(speech, adapters.LoraOptions(r=4, alpha=8, rslora=rslora, scope="decoder"), seed=0)
        layer = speech.model.get_submodule(lora_layer(speech))
        assert layer.scaling["default"] == scaling  # alpha / sqrt(r), alpha / r


def lora_layer(speech: SpeechModel) -> str:
    return f"{speech.family.stacks['decoder'].path}.0.self_attn.q_proj"


def test_trained_weights_are_float32(speech: SpeechModel) -> None:
    adapters.attach(tiny.fresh(speech), OPTIONS, seed=0)
    speech.model.to(torch.bfloat16)
    adapters.attach(speech, OPTIONS, seed=0)
    trained = [p for p in speech.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}


def test_an_adapter_comes_back_whole(base: SpeechModel, speech: SpeechModel, adapter: Path) -> None:
    """`speech` carries the adapter merged, by the fixture."""
    inputs = tiny.ask(base, [tiny.clip(1, 0.8)])
    model = adapters.load(base, adapter)
    torch.testing.assert_close(tiny.logits(base, inputs), tiny.logits(speech, inputs), atol=1e-3, rtol=1e-3)
    assert not any(p.requires_grad for p in base.model.parameters())
    adapters.save(model, adapter.parent / "again", "../40-pruned")
    for file in (adapters.WEIGHTS, adapters.CONFIG):
        assert (adapter.parent / "again" / file).read_bytes() == (adapter / file).read_bytes()


def test_training_can_go_on(base: SpeechModel, adapter: Path) -> None:
    adapters.load(base, adapter, trainable=True)
    assert {".lora_" in n for n, p in base.model.named_parameters() if p.requires_grad} == {True}


def test_stock_peft_loads_it(base: SpeechModel, speech: SpeechModel, adapter: Path) -> None:
    inputs = tiny.ask(base, [tiny.clip(1, 0.8)])
    expected = tiny.logits(speech, inputs)
    peft.PeftModel.from_pretrained(base.model, str(adapter))
    torch.testing.assert_close(tiny.logits(base, inputs), expected, atol=1e-3, rtol=1e-3)


def test_the_configuration_names_the_base_and_every_layer(base: SpeechModel, adapter: Path) -> None:
    config = json.loads((adapter / adapters.CONFIG).read_text())
    assert config["base_model_name_or_path"] == "../40-pruned"
    assert config["target_modules"] == sorted(adapters.targets(base, "all"))
    assert base.path not in (adapter / adapters.CONFIG).read_text()
    assert sorted(p.name for p in adapter.iterdir()) == [adapters.CONFIG, adapters.WEIGHTS]


def test_missing_and_unknown_weights_are_refused(base: SpeechModel, adapter: Path) -> None:
    stored = load_file(adapter / adapters.WEIGHTS)
    names = [n for n, _ in base.model.named_modules()]
    for change, message in (
        (lambda t: t.pop(sorted(t)[0]), "lacks 1 weights, base_model"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}), "no place for 1.*lm_head"),
        (lambda t: t.update({sorted(t)[0]: torch.zeros(2, 2)}), "another size of 1"),
    ):
        tensors = dict(stored)
        change(tensors)
        save_file(tensors, adapter / adapters.WEIGHTS)
        with pytest.raises(ArtifactError, match=message):
            adapters.load(base, adapter)
        assert [n for n, _ in base.model.named_modules()] == names


def test_an_adapter_of_another_model_is_refused(base: SpeechModel, adapter: Path) -> None:
    layers.prune(base, "decoder", [0, 1, 2])
    with pytest.raises(ArtifactError, match=r"sits on .*layers\.3.*same layers kept"):
        adapters.load(base, adapter)


def test_damaged_adapters_are_refused(base: SpeechModel, adapter: Path) -> None:
    whole = (adapter / adapters.WEIGHTS).read_bytes()
    (adapter / adapters.WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match="is damaged"):
        adapters.load(base, adapter)
    (adapter / adapters.WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="holds no adapter_model"):
        adapters.load(base, adapter)
    (adapter / adapters.WEIGHTS).write_bytes(whole)
    (adapter / adapters.CONFIG).write_text("{")
    with pytest.raises(ArtifactError, match=r"adapter_config\.json: not JSON"):
        adapters.load(base, adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', and adapters of that kind are not read"),
        ({"peft_type": "NEW"}, "peft_type is 'NEW'"),
        ({"peft_type": None}, "'peft_type' cannot be None"),
        ({"lora_alpha": None}, "'lora_alpha' cannot be None"),
        ({"lora_alpha": "8"}, "'lora_alpha' cannot be '8'"),
        ({"r": 0}, "r or lora_dropout is out of range"),
        ({"r": "2"}, "'r' cannot be '2'"),
        ({"target_modules": 3}, "'target_modules' cannot be 3"),
        ({"lora_dropout": "x"}, "'lora_dropout' cannot be 'x'"),
        ({"lora_dropout": -1}, "r or lora_dropout is out of range"),
        ({"rank_pattern": {"q_proj": 1}}, "rank_pattern is {'q_proj': 1}"),
        ({"use_dora": True}, "use_dora is True"),
    ],
)
def test_odd_configs_of_adapters_are_refused(
    base: SpeechModel, adapter: Path, change: dict[str, object], message: str
) -> None:
    config = json.loads((adapter / adapters.CONFIG).read_text())
    (adapter / adapters.CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(ArtifactError, match=message):
        adapters.load(base, adapter)
    assert not [name for name, _ in base.model.named_modules() if "lora" in name]


@pytest.mark.parametrize("content", ["[]", "null", "5", "[" * 2000 + "]" * 2000, ""])
def test_a_config_of_an_adapter_that_is_no_object(base: SpeechModel, adapter: Path, content: str) -> None:
    (adapter / adapters.CONFIG).write_text(content)
    with pytest.raises(ArtifactError, match=r"adapter_config\.json"):
        adapters.load(base, adapter)


def test_an_adapter_of_no_numbers_is_neither_loaded_nor_written(
    base: SpeechModel, adapter: Path, tmp_path: Path
) -> None:
    tensors = load_file(adapter / adapters.WEIGHTS)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[1] = float("inf")
    save_file(tensors, adapter / adapters.WEIGHTS)
    with pytest.raises(FamilyError, match=f"{adapter}: the weights '{name}' hold NaN or infinity"):
        adapters.load(base, adapter)
    peft_model = adapters.attach(base, OPTIONS, seed=0)
    with torch.no_grad():
        next(p for n, p in base.model.named_parameters() if ".lora_A." in n)[0, 0] = float("nan")
    with pytest.raises(FamilyError, match="hold NaN or infinity"):
        adapters.save(peft_model, tmp_path / "new", "../base")
    assert not list((tmp_path / "new").iterdir())


def test_a_second_adapter_is_refused(speech: SpeechModel, adapter: Path) -> None:
    adapters.load(speech, adapter)
    for add in (lambda: adapters.load(speech, adapter), lambda: adapters.attach(speech, OPTIONS, 0)):
        with pytest.raises(ArtifactError, match="carries an adapter already"):
            add()


def test_merging_leaves_a_plain_module(base: SpeechModel, pico: Callable[[str], SpeechModel], adapter: Path) -> None:
    adapters.load(base, adapter)
    adapters.merge(base)
    plain = pico("qwen2_audio").model
    assert [type(m) for m in base.model.modules()] == [type(m) for m in plain.modules()]
    assert vars(base.model).keys() == vars(plain).keys()
    with pytest.raises(ArtifactError, match="no adapter to merge"):
        adapters.merge(base)


def test_merging_rounds_once(base: SpeechModel) -> None:
    base.model.to(torch.bfloat16)
    name = lora_layer(base)
    weight = base.model.get_submodule(name).weight.detach().float()
    adapters.attach(base, OPTIONS, seed=0)
    tiny.stir(base)
    layer = base.model.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = (weight + OPTIONS.alpha / 2 * b @ a).to(torch.bfloat16)
    adapters.merge(base)
    merged = base.model.get_submodule(name).weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, expected)
