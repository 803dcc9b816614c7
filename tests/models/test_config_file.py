"""config.json of others: refused where transformers would take a default, fail, or allocate another model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from sordino.errors import ArtifactError, FamilyError, SordinoError
from sordino.formats import registry as formats
from sordino.measure.audit import audit
from sordino.models import loading, registry, stored

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def copied(model_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_dir, tmp_path / "model")
    return tmp_path / "model"


def edit(directory: Path, change: Change) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


def refusals(directory: Path) -> list[str]:
    """What loading, exporting and a plan's look at the config say; each must refuse."""
    messages = []
    for use in (
        lambda: loading.open_model(str(directory), device="cpu"),
        lambda: formats.get("bf16").write(str(directory), directory.parent),
        lambda: registry.family_of(str(directory)),
    ):
        with pytest.raises(SordinoError) as refusal:
            use()
        messages.append(str(refusal.value))
    return messages


@pytest.mark.parametrize("content", ["[]", "null", "5", '"x"', "[" * 5000 + "]" * 5000, "{", '{"a": 1}\0', ""])
def test_no_object(copied: Path, content: str) -> None:
    (copied / "config.json").write_text(content)
    assert all("config.json" in message and len(message) < 600 for message in refusals(copied))
    with pytest.raises(ArtifactError, match=r"config\.json"):
        audit(copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(quantization_config=[]), "quantization_config cannot be []"),
        (lambda c: c.update(quantization_config="gguf"), "quantization_config cannot be 'gguf'"),
        (lambda c: c.update(text_config=[1]), "text_config cannot be [1]"),
        (lambda c: c.update(audio_config="big"), "audio_config cannot be 'big'"),
        (lambda c: c["text_config"].update(num_attention_heads=-1), "text_config.num_attention_heads cannot be -1"),
        (lambda c: c["audio_config"].update(encoder_attention_heads=-1), "audio_config.encoder_attention_heads cannot"),
        (lambda c: c["audio_config"].update(dropout=-1), "audio_config.dropout cannot be -1"),
        (lambda c: c["text_config"].update(attention_dropout=1.5), "text_config.attention_dropout cannot be 1.5"),
        (
            lambda c: c["text_config"].update(num_hidden_layers=10**9),
            "text_config.num_hidden_layers cannot be 10000000",
        ),
        (lambda c: c["text_config"].update(hidden_size=1e300), "text_config.hidden_size cannot be 1e+300"),
    ],
)
def test_parts_that_are_none_and_numbers_that_no_model_has(copied: Path, change: Change, said: str) -> None:
    edit(copied, change)
    assert all(said in message for message in refusals(copied))
    with pytest.raises(ArtifactError, match=r"config\.json: .* cannot be"):
        audit(copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["text_config"].update(num_hidden_layers=3), "does not describe a model"),  # of 4 layer_types
        (lambda c: c["text_config"].update(num_hidden_layers="4"), "does not describe a model"),
        (lambda c: c["text_config"].update(model_type="none"), "does not describe a model"),
        (lambda c: c["text_config"].update(hidden_size=62), "53 weights of other shapes"),
        (lambda c: c["audio_config"].update(d_model="wide"), "does not describe a model"),
    ],
)
def test_what_transformers_refuses(copied: Path, change: Change, said: str) -> None:
    edit(copied, change)
    for use in (loading.load_checkpoint, stored.open_model):
        with pytest.raises(FamilyError, match=said) as refusal:
            use(str(copied))
        assert str(refusal.value).count("\n") == 0
        assert len(str(refusal.value)) < 700


@pytest.mark.parametrize("part", ["text_config", "audio_config"])
def test_a_missing_part_is_refused_before_its_default_is_built(
    copied: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classes' defaults are a decoder of 7B and the encoder of Whisper large."""

    def allocate(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was allocated")

    monkeypatch.setattr(transformers.Qwen2AudioForConditionalGeneration, "from_pretrained", allocate)
    edit(copied, lambda config: config.pop(part))
    for use in (loading.load_checkpoint, stored.open_model):
        with pytest.raises(FamilyError, match=r"lacks \d+ weights that its config\.json promises"):
            use(str(copied))


def test_a_missing_part_of_a_quantized_model(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nf4", "w4a16"):
        out = tmp_path / name
        out.mkdir()
        formats.get(name).write(str(model_dir), out)
        loading.load_checkpoint(str(out), device="cpu")
        edit(out, lambda config: config.pop("text_config"))
        monkeypatch.setattr(transformers.Qwen2AudioForConditionalGeneration, "from_pretrained", pytest.fail)
        with pytest.raises(FamilyError, match=r"lacks \d+ weights that its config\.json promises"):
            loading.load_checkpoint(str(out), device="cpu")
        monkeypatch.undo()


@pytest.mark.parametrize("value", [None, 10**6, -1, 3, "x"])
def test_no_token_for_audio(copied: Path, value: object) -> None:
    """Left out, null, of no token, or of a token that is text."""
    edit(copied, lambda config: config.update(audio_token_index=value))
    with pytest.raises(FamilyError):
        speech = loading.load_checkpoint(str(copied), device="cpu")
        if value == 3:  # a token, but the template places another
            from sordino.config.schema import PromptSection
            from sordino.models import prompts

            prompts.render(speech, PromptSection(), "en", "de")


@pytest.mark.parametrize(
    "content", ["[]", "null", "{", "[" * 5000 + "]" * 5000, '{"eos_token_id": "x"}', '{"suppress_tokens": [-1]}']
)
def test_a_generation_config_that_is_none(copied: Path, content: str) -> None:
    (copied / "generation_config.json").write_text(content)
    for use in (loading.load_checkpoint, stored.open_model):
        with pytest.raises(FamilyError, match=r"generation_config\.json"):
            use(str(copied))


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("kind", ["directory", "loop", "empty", "list", "deep"])
def test_processor_files_that_would_be_passed_over(copied: Path, name: str, kind: str) -> None:
    file = copied / name
    file.unlink()
    if kind == "directory":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(name)
    else:
        file.write_text({"empty": "", "list": "[]", "deep": "[" * 5000 + "]" * 5000}[kind])
        if file.suffix == ".jinja" and kind != "empty":
            return  # a template may hold any text
    for use in (loading.load_checkpoint, stored.open_model):
        with pytest.raises(FamilyError, match=rf"{copied}"):
            use(str(copied))


def test_advice_of_libraries_is_not_handed_on(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "Weights only load failed. You can do so by setting `weights_only=False`, if you trust the file. "
        "See https://example.org/pickle.\nNo such tensor."
    )

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(transformers.Qwen2AudioForConditionalGeneration, "from_pretrained", fail)
    with pytest.raises(FamilyError, match=r"do not load: RuntimeError: .*No such tensor\. Copy or make") as refusal:
        loading.load_checkpoint(str(copied), device="cpu")
    assert "weights_only" not in str(refusal.value)
    assert "pickle" not in str(refusal.value)


def test_a_stale_adapter_is_refused_everywhere(copied: Path, tmp_path: Path) -> None:
    """transformers would apply it to the weights, and what copies them would leave it out."""
    (copied / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    messages = refusals(copied)
    assert all("holds a whole model (config.json) and an adapter (adapter_config.json)" in m for m in messages)
    assert [finding.kind for finding in audit(copied).findings if "adapter" in finding.kind] == []
    (copied / "adapter_config.json").unlink()
    assert loading.open_model(str(copied), device="cpu").layer_count("decoder") == 4


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("processor_config.json", lambda c: c["feature_extractor"].update(padding_side=""), "does not prepare audio"),
        ("processor_config.json", lambda c: c["feature_extractor"].update(n_fft="x"), "the processor in .*"),
        ("processor_config.json", lambda c: c["feature_extractor"].update(chunk_length=0), "the processor in .*"),
        (
            "tokenizer.json",
            lambda c: [token.update(content="<|end|>") for token in c["added_tokens"] if token["id"] == 256],
            r"have no token <\|im_end\|> in common",  # it gets an id behind the embedding's last row
        ),
    ],
)
def test_a_processor_of_another_model_is_noticed_when_it_is_loaded(
    copied: Path, name: str, change: Change, said: str
) -> None:
    """And not in the middle of a training."""
    content = json.loads((copied / name).read_text())
    change(content)
    (copied / name).write_text(json.dumps(content))
    with pytest.raises(FamilyError, match=said):
        loading.load_checkpoint(str(copied), device="cpu")


@pytest.mark.parametrize(
    "groups", [3, [], {"group_0": None}, {"group_0": {"targets": 3.5, "weights": {"num_bits": 4}}}]
)
def test_odd_settings_of_packed_weights_have_no_size(model_dir: Path, tmp_path: Path, groups: object) -> None:
    out = tmp_path / "w4a16"
    out.mkdir()
    formats.get("w4a16").write(str(model_dir), out)
    edit(out, lambda config: config["quantization_config"].update(config_groups=groups))
    assert audit(out).parameters is None
