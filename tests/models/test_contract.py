"""What every family owes the rest of the project, tested alike for each entry of `registry.FAMILIES`."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sordino.errors import ArtifactError, FamilyError, RecipeError
from sordino.models import adapters, loading, registry, saving
from sordino.models.family import Prompt, Scope
from sordino.models.speech import SpeechModel
from sordino.pruning import layers
from tests import tiny

FAMILIES = sorted(registry.FAMILIES)
COUNTS = {"decoder": tiny.DECODER_LAYERS, "encoder": tiny.ENCODER_LAYERS}
KEEP = {"decoder": [0, 2, 3], "encoder": [0, 2]}

# each family with each list of layers that it has
EACH_STACK = pytest.mark.parametrize(
    ("speech", "scope"),
    [(name, scope) for name in FAMILIES for scope in registry.get(name).scopes],
    indirect=["speech"],
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Pico = Callable[[str], SpeechModel]


@pytest.fixture(params=FAMILIES)
def speech(request: pytest.FixtureRequest, pico: Pico) -> SpeechModel:
    """A model of each family in turn, for this test alone."""
    return tiny.fresh(pico(request.param))


def snapshot(speech: SpeechModel) -> dict[str, Any]:
    """All that surgery touches: weights, configs, indices."""
    indices = {n: m.layer_idx for n, m in speech.model.named_modules() if hasattr(m, "layer_idx")}
    configs = {n: m.config.to_dict() for n, m in speech.model.named_modules() if hasattr(m, "config")}
    state = {name: tensor.clone() for name, tensor in speech.model.state_dict().items()}
    return {"indices": indices, "configs": copy.deepcopy(configs), "state": state}


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["indices"] == after["indices"]
    assert before["configs"] == after["configs"]
    assert list(before["state"]) == list(after["state"])
    assert all(torch.equal(tensor, after["state"][name]) for name, tensor in before["state"].items())


def test_layers_and_parts_are_found(speech: SpeechModel) -> None:
    for scope in speech.family.scopes:
        stack = speech.family.stacks[scope]
        config = registry.sub_config(speech.model.config, stack.config)
        assert len(speech.layers(scope)) == COUNTS[scope]
        assert getattr(config, stack.count) == COUNTS[scope]
        for name in stack.lists:
            assert len(getattr(config, name)) == COUNTS[scope]
    assert {"projector", "decoder", "embeddings", "head"} <= set(speech.family.parts)
    assert ("encoder" in speech.family.parts) == ("encoder" in speech.family.stacks)
    for part in speech.family.parts:
        assert sum(p.numel() for p in speech.part(part).parameters()) > 0
    assert speech.part("head") is speech.model.get_output_embeddings()
    assert speech.part("embeddings") is speech.model.get_input_embeddings()


def test_project_path_is_the_stock_forward(speech: SpeechModel) -> None:
    wave = tiny.clip(1, 1.37)
    expected = tiny.stock_inputs(speech, wave, tiny.QUESTION.instruction)
    inputs = tiny.ask(speech, [wave])
    assert inputs.input_ids == expected["input_ids"].tolist()
    tolerance = tiny.MEL_TOLERANCE.get(speech.family.model_type, 0.0)
    mel = next(tensor for name, tensor in expected.items() if name.endswith("input_features"))
    stock = mel[..., : inputs.audio[0].shape[-1]]  # silence behind the clip may be left out
    torch.testing.assert_close(inputs.audio[0], stock, rtol=0, atol=tolerance)
    with torch.no_grad():
        reference = speech.model(**expected, use_cache=False).logits
    torch.testing.assert_close(tiny.logits(speech, inputs), reference, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("seconds", [0.2, 0.5, 1.0, 1.013, 2.5, 3.99, 4.0])
def test_placeholders_follow_the_formula(speech: SpeechModel, seconds: float) -> None:
    inputs = tiny.ask(speech, [tiny.clip(0, seconds)])
    token = speech.family.audio.placeholder(speech.model.config)
    count = inputs.input_ids[0].count(token)
    samples = len(tiny.clip(0, seconds))
    assert count == speech.family.audio.tokens(samples) > 0
    assert count == len(tiny.features(speech, inputs)[0])
    stock = tiny.stock_inputs(speech, tiny.clip(0, seconds), tiny.QUESTION.instruction)["input_ids"]
    assert count == int((stock == token).sum())


def test_a_clip_longer_than_the_window_is_refused(speech: SpeechModel) -> None:
    wave = tiny.clip(0, (speech.window_samples + 1) / tiny.RATE)
    with pytest.raises(ValueError, match="does not fit the window"):
        tiny.ask(speech, [wave])
    assert len(tiny.ask(speech, [wave[:-1]]).input_ids) == 1


def test_a_prompt_without_its_audio_is_refused(speech: SpeechModel) -> None:
    inputs = tiny.ask(speech, [tiny.clip(0, 1.0)])
    with pytest.raises(ValueError, match="audio placeholders"):
        speech.embed(torch.tensor(inputs.input_ids), [tiny.features(speech, inputs)[0][:-1]])


def test_an_example_is_rendered_before_the_question(speech: SpeechModel) -> None:
    prompt = Prompt("Translate:", example=("Good morning.", "Guten Morgen."))
    if not speech.family.chat.takes_example:
        with pytest.raises(FamilyError, match="take no example"):
            speech.family.chat.render(speech.processor, prompt)
        return
    text = speech.family.chat.render(speech.processor, prompt)
    assert text.index("Good morning.") < text.index("Guten Morgen.") < text.rindex("Translate:")
    assert len(tiny.ask(speech, [tiny.clip(0, 1.0)], prompt).input_ids) == 1


def test_other_audio_gives_other_logits(speech: SpeechModel) -> None:
    one, other = (tiny.logits(speech, tiny.ask(speech, [tiny.clip(seed, 1.0)])) for seed in (1, 2))
    assert (one[0, -1] - other[0, -1]).abs().max() > 0.05


def test_a_batch_equals_its_clips_one_by_one(speech: SpeechModel) -> None:
    clips = [tiny.clip(1, 0.7), tiny.clip(2, 2.9), tiny.clip(3, 1.6)]
    prompts = [
        speech.family.chat.render(speech.processor, Prompt(text)) for text in ("Go.", "Translate it.", "To German.")
    ]
    together = tiny.logits(speech, speech.family.audio.prepare(speech.processor, clips, prompts))
    for row, wave, prompt in zip(together, clips, prompts, strict=True):
        alone = tiny.logits(speech, speech.family.audio.prepare(speech.processor, [wave], [prompt]))[0]
        torch.testing.assert_close(row[-len(alone) :], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("lengths", [(1.3, 1.3, 1.3), (0.7, 2.9, 1.6)], ids=["equal", "unlike"])
def test_states_do_not_depend_on_neighbours(speech: SpeechModel, lengths: tuple[float, ...]) -> None:
    """One pass for several clips rounds otherwise than one for each, and no more than that."""
    clips = [tiny.clip(seed, seconds) for seed, seconds in enumerate(lengths, 1)]
    passes: list[int] = []
    if speech.family.audio.batched:
        speech.layers("encoder")[0].register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        together, others = (speech.states(tiny.ask(speech, [clips[0], *rest])) for rest in (clips[1:], clips[:0:-1]))
        assert len(passes) == 2 * speech.family.audio.batched
        alone = [speech.states(tiny.ask(speech, [wave]))[0] for wave in clips]
    for rows, one in zip([*together, others[0]], [*alone, alone[0]], strict=True):
        if speech.family.audio.batched:
            torch.testing.assert_close(rows, one, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(rows, one)


def test_an_answer_is_its_text_and_the_stop_token(speech: SpeechModel) -> None:
    text = "Grüße aus Köln, 你好!"
    for style, token in speech.family.chat.answers_end_with.items():
        ids = speech.answer_ids(text, style)
        assert ids[-1] == speech.processor.tokenizer.convert_tokens_to_ids(token)
        assert ids[-1] in speech.stop_ids()
        assert not set(ids[:-1]) & {*speech.stop_ids(), speech.pad_id()}
        assert speech.decode(ids) == text
    assert len(speech.stop_ids()) == len(speech.family.chat.stop_tokens)
    prompt = tiny.ask(speech, [tiny.clip(0, 0.5)]).input_ids[0]
    assert speech.pad_id() not in prompt


@EACH_STACK
def test_keeping_all_is_the_identity(speech: SpeechModel, scope: Scope) -> None:
    inputs = tiny.ask(speech, [tiny.clip(1, 1.0)])
    before, expected = snapshot(speech), tiny.logits(speech, inputs)
    with layers.only(speech, scope, range(COUNTS[scope])):
        assert torch.equal(tiny.logits(speech, inputs), expected)
    layers.prune(speech, scope, range(COUNTS[scope]))
    assert torch.equal(tiny.logits(speech, inputs), expected)
    assert_same(before, snapshot(speech))


@EACH_STACK
@pytest.mark.parametrize("removed", [0, 1])
def test_keeping_some_equals_skipping_the_others(
    speech: SpeechModel, scope: Scope, removed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tiny.ask(speech, [tiny.clip(1, 1.0), tiny.clip(2, 0.6)])
    reference = tiny.fresh(speech)
    skipped = reference.layers(scope)[removed]
    like = type(skipped).forward  # some layers give a tuple

    def skip(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden,) if isinstance(like(skipped, hidden, *args, **kwargs), tuple) else hidden

    monkeypatch.setattr(skipped, "forward", skip)
    expected = tiny.logits(reference, inputs)
    keep = [i for i in range(COUNTS[scope]) if i != removed]
    stack = speech.family.stacks[scope]
    if stack.fits(registry.sub_config(speech.model.config, stack.config), keep):
        with pytest.raises(RecipeError, match="cannot be removed from a"):
            layers.prune(speech, scope, keep)
        return
    with layers.only(speech, scope, keep):
        assert torch.equal(tiny.logits(speech, inputs), expected)
    assert not torch.allclose(tiny.logits(speech, inputs), expected, atol=1e-2)


@EACH_STACK
def test_a_view_restores_exactly(speech: SpeechModel, scope: Scope) -> None:
    before, kept = snapshot(speech), list(speech.layers(scope))
    with layers.only(speech, scope, KEEP[scope]):
        assert len(speech.layers(scope)) == len(KEEP[scope])
    assert_same(before, snapshot(speech))
    with pytest.raises(KeyError, match="inside"), layers.only(speech, scope, KEEP[scope]):
        raise KeyError("inside")
    assert_same(before, snapshot(speech))
    assert all(a is b for a, b in zip(kept, speech.layers(scope), strict=True))


@EACH_STACK
def test_a_pruned_model_survives_saving(speech: SpeechModel, scope: Scope, tmp_path: Path) -> None:
    inputs = tiny.ask(speech, [tiny.clip(1, 1.0)])
    with layers.only(speech, scope, KEEP[scope]):
        expected = tiny.logits(speech, inputs)
    layers.prune(speech, scope, KEEP[scope])
    saving.save(speech, tmp_path)
    loaded = tiny.stock(speech, tmp_path)
    assert torch.equal(tiny.logits(loaded, inputs), expected)
    assert len(loaded.layers(scope)) == len(KEEP[scope])
    again = loading.load_checkpoint(str(tmp_path), device="cpu")
    assert tiny.ask(again, [tiny.clip(1, 1.0)]).input_ids == inputs.input_ids
    config = speech.family.core(json.loads((tmp_path / "config.json").read_text()))
    assert config["tie_word_embeddings"] == tiny.is_tied(speech)
    assert config.get("text_config", config)["tie_word_embeddings"] == tiny.is_tied(speech)


def test_a_saved_config_says_one_dtype(speech: SpeechModel, tmp_path: Path) -> None:
    changed = tiny.fresh(speech)
    changed.model.to(torch.bfloat16)
    saving.save(changed, tmp_path)
    config = speech.family.core(json.loads((tmp_path / "config.json").read_text()))
    parts = [config, *(config[name] for name in changed.model.config.sub_configs)]
    assert len(parts) >= 2 and {part["dtype"] for part in parts} == {"bfloat16"}


@pytest.mark.parametrize("pruned", [False, True])
def test_cached_generation_equals_uncached(speech: SpeechModel, pruned: bool) -> None:
    if pruned:
        for scope in speech.family.scopes:
            layers.prune(speech, scope, KEEP[scope])
    inputs = tiny.ask(speech, [tiny.clip(1, 1.0), tiny.clip(2, 0.6)])
    ids, scores = tiny.greedy(speech, inputs, 6)
    assert ids.shape == (2, 6)
    torch.testing.assert_close(scores, tiny.forced(speech, inputs, ids), atol=1e-3, rtol=1e-3)


def test_cached_generation_notices_a_wrong_index(speech: SpeechModel) -> None:
    """The test above can fail: a layer that keeps its old index after surgery breaks the cache."""
    if "decoder" in speech.family.scopes:
        layers.prune(speech, "decoder", KEEP["decoder"])
    inputs = tiny.ask(speech, [tiny.clip(1, 1.0)])
    ids, _ = tiny.greedy(speech, inputs, 4)
    expected = tiny.forced(speech, inputs, ids)
    last = 2 if "decoder" in speech.family.scopes else 1  # of the layers with keys and values of their own
    for module in speech.layers("decoder")[last].modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = last - 1  # type: ignore[assignment]
    with pytest.raises((AssertionError, RuntimeError)):  # other numbers, or more columns than the mask has
        torch.testing.assert_close(tiny.greedy(speech, inputs, 4)[1], expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("keep", "message"),
    [([0, 9], "layer 9 is out of range"), ([-1], "layer -1 is out"), ([1, 1], "twice"), ([], "no .* layer would be")],
)
def test_a_wrong_choice_of_layers_is_refused(speech: SpeechModel, keep: list[int], message: str) -> None:
    for scope in speech.family.scopes:
        with pytest.raises(RecipeError, match=message):
            layers.prune(speech, scope, keep)
        with pytest.raises(RecipeError, match=message), layers.only(speech, scope, keep):
            pass
        assert len(speech.layers(scope)) == COUNTS[scope]


@pytest.mark.parametrize("scope", ["decoder", "all"])
def test_an_adapter_touches_its_scope_only(speech: SpeechModel, scope: adapters.AdapterScope) -> None:
    inputs = tiny.ask(speech, [tiny.clip(1, 1.0)])
    encode = torch.no_grad()(tiny.features)  # gradients make attention take another way, with other last bits
    encoded, before = torch.cat(encode(speech, inputs)), tiny.logits(speech, inputs)
    adapters.attach(speech, adapters.LoraOptions(r=4, alpha=8, scope=scope), seed=0)
    assert torch.equal(tiny.logits(speech, inputs), before)
    trained = [name for name, parameter in speech.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    inside = {speech.family.part_at(name) == "decoder" for name in trained}
    assert inside == ({True} if scope == "decoder" else {True, False})
    assert isinstance(speech.part("head"), nn.Linear)
    tiny.stir(speech)
    assert torch.equal(torch.cat(encode(speech, inputs)), encoded) == (scope == "decoder")
    assert not torch.allclose(tiny.logits(speech, inputs), before, atol=1e-2)


def test_merged_equals_base_and_adapter(speech: SpeechModel) -> None:
    inputs = tiny.ask(speech, [tiny.clip(1, 1.0)])
    names, base = list(speech.model.state_dict()), tiny.logits(speech, inputs)
    adapters.attach(speech, adapters.LoraOptions(r=4, alpha=8), seed=0)
    tiny.stir(speech)
    adapted = tiny.logits(speech, inputs)
    adapters.merge(speech)
    torch.testing.assert_close(tiny.logits(speech, inputs), adapted, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(adapted, base, atol=1e-1)
    assert list(speech.model.state_dict()) == names


def test_unknown_families_are_refused_with_the_list(speech: SpeechModel, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(FamilyError, match=f"'whisper' are not supported.*{speech.family.model_type}"):
        loading.load_checkpoint(str(tmp_path))


@pytest.fixture
def copied(speech: SpeechModel, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(speech.path, target)
    return target


def test_truncated_weights_are_refused(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match=f"{weights} is truncated or damaged"):
        loading.load_checkpoint(str(copied), device="cpu")


@EACH_STACK
@pytest.mark.parametrize(("change", "message"), [(1, "lacks .* weights"), (-1, "does not count")])
def test_a_wrong_layer_count_is_refused(
    speech: SpeechModel, copied: Path, scope: Scope, change: int, message: str
) -> None:
    tiny.recount(copied, scope, [*range(COUNTS[scope]), COUNTS[scope] - 1][: COUNTS[scope] + change])
    with pytest.raises(FamilyError, match=message) as caught:
        loading.load_checkpoint(str(copied), device="cpu")
    name = speech.family.tensors.saved_name(speech.family.stacks[scope].path)
    assert f"{name}.{COUNTS[scope] + min(change, 0)}." in str(caught.value)


def test_a_model_without_its_processor_is_refused(speech: SpeechModel, copied: Path) -> None:
    for file in copied.iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            file.unlink()
    with pytest.raises(FamilyError, match=f"processor in {copied} does not load"):
        loading.load_checkpoint(str(copied), device="cpu")
