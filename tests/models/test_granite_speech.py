"""What is Granite Speech's own: its features, templates, windows, the feedback halfway, and 3.3's adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sordino.errors import ArtifactError, FamilyError, RecipeError
from sordino.models import adapters, embedded, loading, saving, shapes, stored
from sordino.models.answers import SpeechLM, encoded_batch
from sordino.models.family import Prompt
from sordino.models.features import Features
from sordino.models.generation import EpsilonSampling, generate
from sordino.models.granite_speech import DATED, GRANITE_SPEECH, audio_tokens, encoder_states, log_mel
from sordino.models.speech import SpeechModel
from sordino.pruning import layers, search
from sordino.pruning.search import Layer
from tests import tiny
from tests.data import sounds
from tests.models.torchaudio_formula import stock_extractor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WITH_ROLES = (  # in short what 3.3 and 4.1-plus have
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n{% else %}"
    "Today's Date: {{ strftime_now('%B %d, %Y') }}.\n{% endif %}"
    "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
)


@pytest.fixture
def granite(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return tiny.fresh(pico("granite_speech"))


@pytest.mark.parametrize("mels", [64, 80])
@pytest.mark.parametrize("seconds", [0.1, 0.2, 1.37, 4.0, 30.0])
def test_features_and_counts_are_the_stock_extractors(mels: int, seconds: float) -> None:
    wave = tiny.clip(3, seconds)
    stock = stock_extractor(mels)(torch.from_numpy(wave)[None])
    torch.testing.assert_close(log_mel(wave, mels), stock["input_features"][0], rtol=0, atol=2e-5)
    assert stock["input_features"].shape[1] == encoder_states(len(wave))
    assert stock["audio_embed_sizes"] == [audio_tokens(len(wave))]


@pytest.mark.parametrize("states", [1, 14, 15, 16, 31, 45])
def test_clips_share_the_q_formers_pass(granite: SpeechModel, states: int) -> None:
    clips = [torch.randn(n, 64, generator=torch.Generator().manual_seed(n)) for n in (states, 7, 30)]
    alone = [granite.model.model.projector(clip[None])[0] for clip in clips]
    for one, other in zip(granite.project(clips), alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_statistics_of_the_batch_norms_stay_while_training(granite: SpeechModel) -> None:
    inputs = tiny.ask(granite, [tiny.clip(1, 1.0)])
    before = {name: tensor.clone() for name, tensor in granite.model.state_dict().items() if "batch_norm" in name}
    granite.model.train()
    granite.states(inputs)
    assert all(torch.equal(tensor, granite.model.state_dict()[name]) for name, tensor in before.items())


def test_the_prompt_is_that_of_4_0(granite: SpeechModel) -> None:
    text = GRANITE_SPEECH.chat.render(granite.processor, Prompt("translate the speech to German"))
    assert text == "USER: <|audio|>translate the speech to German\n ASSISTANT:"
    with pytest.raises(FamilyError, match="no place for a system prompt"):
        GRANITE_SPEECH.chat.render(granite.processor, Prompt("Go.", system="Be brief."))
    with pytest.raises(FamilyError, match=r"chats only.*'base'"):
        GRANITE_SPEECH.chat.render(granite.processor, Prompt("Go.", style="base"))


def test_no_prompt_has_todays_date(granite: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granite.processor.tokenizer, "chat_template", WITH_ROLES)
    text = GRANITE_SPEECH.chat.render(granite.processor, Prompt("Go."))
    assert text == f"{DATED}\n<user><|audio|>Go.\n<assistant>"
    assert GRANITE_SPEECH.chat.render(granite.processor, Prompt("Go.", system="Be brief.")).startswith("Be brief.\n<")


def test_another_processor_is_refused(granite: SpeechModel, tmp_path: Path) -> None:
    shutil.copytree(granite.path, tmp_path / "model")
    file = tmp_path / "model" / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    for change, message in (
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "is a WhisperFeatureExtractor, and this model needs"),
        ({"processor_class": "VoxtralProcessor"}, "is a VoxtralProcessor, and this model needs GraniteSpeechProcessor"),
        ({"hop_length": 320}, "has hop_length 320 instead of 160"),
    ):
        file.write_text(json.dumps(settings | change))
        with pytest.raises(FamilyError, match=message):
            loading.load_checkpoint(str(tmp_path / "model"), device="cpu")


def test_sampling_and_losses_see_divided_logits(granite: SpeechModel) -> None:
    prompt = GRANITE_SPEECH.chat.render(granite.processor, tiny.QUESTION)
    encoded = Features(granite, None).encode_waveform(sounds.clip("a"), tiny.clip(1, 1.0), prompt)
    answer = [70, 71]
    with torch.no_grad():
        divided = SpeechLM(granite)(encoded_batch(granite, [encoded], [answer]))
        batch = tiny.embedded(granite, tiny.ask(granite, [tiny.clip(1, 1.0)]), [answer])
        stock = granite.model(**batch, use_cache=False).logits[0, -3:-1]
    torch.testing.assert_close(divided * 2.0, stock, atol=1e-4, rtol=1e-4)  # logits_scaling of the tiny model
    seen: list[torch.Tensor] = []

    class Watch(EpsilonSampling):
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(scores)
            return super().__call__(ids, scores)

    generate(granite, [encoded], 1, Watch(torch.full((1, 1), 0.5), 1.0, 0.0))
    torch.testing.assert_close(seen[0], divided[:1], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    """With six encoder layers: the feedback is behind the third."""
    directory = tmp_path_factory.mktemp("deep")
    GRANITE_SPEECH.tiny(str(directory), 2, 6, 1)
    return loading.load_checkpoint(str(directory), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("keep", "fits"),
    [([0, 1, 3, 4], True), ([0, 1, 3, 4, 5], True), ([0, 1, 2, 4, 5], False), ([1, 2, 3, 4], True), ([3, 4], False)],
)
def test_encoder_layers_go_in_a_way_that_leaves_the_feedback(deep: SpeechModel, keep: list[int], fits: bool) -> None:
    inputs = tiny.ask(deep, [tiny.clip(1, 1.0)])
    changed = tiny.fresh(deep)
    if not fits:
        with pytest.raises(RecipeError, match=r"cannot be removed.*before the feedback of its middle"):
            layers.prune(changed, "encoder", keep)
        assert len(changed.layers("encoder")) == 6
        return
    reference = tiny.fresh(deep)
    for index in set(range(6)) - set(keep):
        reference.layers("encoder")[index].forward = lambda hidden, **_: hidden  # type: ignore[method-assign]
    layers.prune(changed, "encoder", keep)
    assert torch.equal(changed.states(inputs)[0], reference.states(inputs)[0])
    assert changed.model.model.encoder.num_layers == len(keep)


def test_ranking_takes_encoder_layers_from_both_halves_in_turn(deep: SpeechModel) -> None:
    pool = search.candidates(deep, "encoder", 0, 0)

    class Scorer:
        higher_is_better, clips = True, 1

        def trials(self, number: int, removed: Any, candidates: Any, clips: int) -> Any:
            for layer in candidates:
                if layer is not None:
                    with search.without(deep, [*removed, layer]):  # refuses what does not fit
                        pass
                yield search.Trial(number, layer, float(layer.index if layer else 0), clips)

        def screen(self, removed: Any, candidates: Any, clips: int) -> list[float]:
            raise AssertionError

        def resampled(self, trial: Any) -> Any:
            import numpy as np

            return np.array([trial.score])

    def allowed(removed: Any) -> bool:
        return search.allows(deep, removed)

    removals = search.search(pool, 4, Scorer(), [], lambda _: None, allowed=allowed)
    assert [r.layer for r in removals] == [Layer("encoder", i) for i in (2, 5, 1, 4)]
    with pytest.raises(RecipeError, match="not all of these layers may go alone"):
        search.search(pool, 2, Scorer(), [], lambda _: None, racing=True, allowed=allowed)


class Adapted:
    """A directory as 3.3 has it: base and adapter; and the logits that peft computes with both."""

    def __init__(self, granite: SpeechModel, directory: Path, names: str = "live") -> None:
        self.directory = directory
        shutil.copytree(granite.path, directory)
        model = tiny.fresh(granite)
        self.inputs = tiny.ask(model, [tiny.clip(1, 1.0)])
        self.base = tiny.logits(model, self.inputs)
        adapter = adapters.attach(model, adapters.LoraOptions(r=4, alpha=8, rslora=False, scope="decoder"), seed=0)
        tiny.stir(model)
        self.logits = tiny.logits(model, self.inputs)
        adapters.save(adapter, directory, "")
        if names == "old":
            tensors = load_file(directory / embedded.WEIGHTS)
            renamed = {
                n.replace("model.model.language_model.", "model.language_model.model."): t for n, t in tensors.items()
            }
            save_file(renamed, directory / embedded.WEIGHTS)
        self.edit("config.json", has_lora_adapter=True)

    def edit(self, name: str, **changes: Any) -> None:
        file = self.directory / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("names", ["live", "old"])
def test_an_adapter_beside_the_weights_is_merged(granite: SpeechModel, tmp_path: Path, names: str) -> None:
    made = Adapted(granite, tmp_path / "model", names)
    loaded = loading.open_model(str(made.directory), device="cpu", dtype="float32")
    torch.testing.assert_close(tiny.logits(loaded, made.inputs), made.logits, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(made.logits, made.base, atol=1e-1)
    assert loaded.model.config.has_lora_adapter is False
    assert list(loaded.model.state_dict()) == list(granite.model.state_dict())


def test_copies_from_file_to_file_are_merged_to_the_same_bytes(granite: SpeechModel, tmp_path: Path) -> None:
    made = Adapted(granite, tmp_path / "model")
    (tmp_path / "files").mkdir()
    stored.open_model(str(made.directory)).write_16bit(tmp_path / "files", "test")
    loaded = loading.load_checkpoint(str(made.directory), device="cpu", dtype="float32")
    loaded.model.to(torch.bfloat16)
    saving.save(loaded, tmp_path / "memory")
    one, other = (load_file(tmp_path / way / "model.safetensors") for way in ("files", "memory"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for way in ("files", "memory"):
        assert json.loads((tmp_path / way / "config.json").read_text())["has_lora_adapter"] is False
        assert not (tmp_path / way / embedded.CONFIG).exists()
        tiny.stock(granite, tmp_path / way)


def test_rows_are_merged_alike_however_they_are_read(
    granite: SpeechModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Adapted(granite, tmp_path / "model")
    monkeypatch.setattr(embedded, "ROWS", 16)
    checkpoint = embedded.open_checkpoint(GRANITE_SPEECH, made.directory)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    assert not checkpoint.as_stored(name)
    whole = checkpoint.read(name)
    assert torch.equal(torch.cat([checkpoint.read(name, (0, 21)), checkpoint.read(name, (21, 128))]), whole)
    pieces = [torch.frombuffer(piece, dtype=whole.dtype) for piece in checkpoint.chunks(name)]
    assert torch.equal(torch.cat(pieces), whole.flatten())


def test_what_cannot_be_merged_is_refused(granite: SpeechModel, tmp_path: Path) -> None:
    made = Adapted(granite, tmp_path / "model")
    weights = made.directory / embedded.WEIGHTS

    def refused(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            loading.load_checkpoint(str(made.directory), device="cpu")
        with pytest.raises(error, match=message):
            stored.open_model(str(made.directory))

    with pytest.raises(FamilyError, match=r"not merged into 4-bit ones.*export\.formats"):
        loading.load_checkpoint(str(made.directory), device="cpu", quantize="nf4")
    made.edit(embedded.CONFIG, use_dora=True)
    refused(FamilyError, "an adapter with use_dora = True cannot be merged here")
    made.edit(embedded.CONFIG, use_dora=False, r=8)
    refused(ArtifactError, r"adapter_model\.safetensors does not fit 'language_model\.model\.layers\.0")
    made.edit(embedded.CONFIG, r=4)
    tensors = load_file(weights)
    save_file({**tensors, "base_model.model.visual.lora_A.weight": torch.ones(4, 4)}, weights)
    refused(FamilyError, "'base_model.model.visual.lora_A.weight' has no place")
    weights.write_bytes(weights.read_bytes()[:-7])
    refused(ArtifactError, r"adapter_model\.safetensors is truncated or damaged")
    weights.unlink()
    refused(FamilyError, r"an adapter belongs to the weights .*\(has_lora_adapter\), and there is no adapter_model")


def test_windows_of_another_size_are_refused(granite: SpeechModel, tmp_path: Path) -> None:
    shutil.copytree(granite.path, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"window_size": 20}))
    with pytest.raises(FamilyError, match="windows of 20 states, of which every 5th stays, are not supported"):
        loading.load_checkpoint(str(tmp_path / "model"), device="cpu")


def test_a_tied_head_as_3_3_has_it(granite: SpeechModel, tmp_path: Path) -> None:
    shutil.copytree(granite.path, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    del config["tie_word_embeddings"]  # the class's default is tied, and 3.3's file leaves it out
    config["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model/model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    speech = loading.load_checkpoint(str(tmp_path / "model"), device="cpu", dtype="float32")
    assert tiny.is_tied(speech)
    assert {t.name for t in shapes.model(config).tensors} == set(tensors)
    (tmp_path / "copy").mkdir()
    stored.open_model(str(tmp_path / "model")).write_16bit(tmp_path / "copy", "test")
    assert load_file(tmp_path / "copy/model.safetensors").keys() == tensors.keys()
    assert json.loads((tmp_path / "copy/config.json").read_text())["tie_word_embeddings"] is True
