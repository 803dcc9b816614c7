"""Gemma 4 12B: what its processor, its two kinds of layers and its head ask beyond the families' contract."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino.errors import FamilyError, RecipeError
from sordino.models import adapters, loading, saving
from sordino.models.answers import SpeechLM, answer_batch
from sordino.models.decoder_line import open_line
from sordino.models.family import Prompt
from sordino.models.features import Features
from sordino.models.generation import generate
from sordino.models.speech import SpeechModel
from sordino.pruning import layer, layers, search
from sordino.pruning.speculative import SpeculativeDecoder
from sordino.training import trainer
from tests import tiny
from tests.data import sounds
from tests.stages.runs import Made, recipe_file, refusal

NAME = "gemma4_unified"


@pytest.fixture
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return tiny.fresh(pico(NAME))


@pytest.fixture
def copied(pico_dir: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(pico_dir(NAME), tmp_path / "copied")
    return tmp_path / "copied"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_text_stands_before_audio_and_thinking_is_off(speech: SpeechModel) -> None:
    text = speech.family.chat.render(speech.processor, Prompt("Translate: ", system="Be brief."))
    assert text == (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nTranslate:<|audio|><turn|>\n"
        "<|turn>model\n<|channel>thought\n<channel|>"
    )
    ids = speech.family.audio.prepare(speech.processor, [tiny.clip(0, 0.2)], [text]).input_ids[0]
    tokens = speech.processor.tokenizer.convert_ids_to_tokens(ids)
    assert tokens.count("<bos>") == 1
    assert tokens[tokens.index("<|audio>") : tokens.index("<audio|>") + 1] == [
        "<|audio>",
        *["<|audio|>"] * 5,
        "<audio|>",
    ]
    assert speech.family.chat.render(speech.processor, Prompt("Say:", style="base")) == "<bos><|audio|>Say:"


def test_a_checkpoints_own_template_is_asked(copied: Path) -> None:
    """The small Gemmas' writes no empty thought."""
    file = copied / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{- '<|channel>thought\\n<channel|>' -}}", ""))
    speech = loading.load_checkpoint(str(copied), device="cpu")
    assert speech.family.chat.render(speech.processor, tiny.QUESTION).endswith("<|turn>model\n")


def test_the_processors_files_travel_untouched(speech: SpeechModel, tmp_path: Path) -> None:
    saving.save(speech, tmp_path)
    for name in ("processor_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (Path(speech.path) / name).read_bytes()


def test_another_gemmas_processor_is_refused(copied: Path) -> None:
    kind = {"feature_extractor_type": "Gemma4AudioFeatureExtractor", "feature_size": 128}
    edit(copied / "processor_config.json", lambda content: content.update(feature_extractor=kind))
    with pytest.raises(
        FamilyError, match="prepares audio by Gemma4AudioFeatureExtractor, and this model needs Gemma4U"
    ):
        loading.load_checkpoint(str(copied), device="cpu")


def test_a_gemma_that_hears_nothing_is_refused(copied: Path) -> None:
    edit(copied / "config.json", lambda content: content.pop("audio_config"))
    with pytest.raises(FamilyError, match="this Gemma hears nothing"):
        loading.load_checkpoint(str(copied), device="cpu")


def test_the_window_is_the_processors(copied: Path) -> None:
    edit(copied / "processor_config.json", lambda content: content.update(audio_seq_length=750))
    assert loading.load_checkpoint(str(copied), device="cpu").window_samples == 30 * tiny.RATE


def test_per_layer_settings_follow_their_layers(speech: SpeechModel, tmp_path: Path) -> None:
    layers.prune(speech, "decoder", [0, 2, 3])
    saving.save(speech, tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert text["layer_types"] == ["sliding_attention", "full_attention", "full_attention"]
    full = {"head_dim": 32, "num_key_value_heads": 1}
    assert text["per_layer_config"] == {"1": full, "2": full}
    layers.prune(speech, "decoder", [2])  # no sliding layer is left
    assert speech.model.config.text_config.to_dict()["per_layer_config"] == {"0": full}
    assert tiny.logits(speech, tiny.ask(speech, [tiny.clip(1, 0.5)])).isfinite().all()


def test_the_last_layer_stays(speech: SpeechModel) -> None:
    assert [candidate.index for candidate in search.candidates(speech, "decoder", 0, 0)] == [0, 1, 2]
    with pytest.raises(RecipeError, match="decoder layer 3 cannot be removed from a gemma4_unified model"):
        layers.prune(speech, "decoder", [0, 1, 2])
    config = speech.model.config.to_dict()
    with pytest.raises(RecipeError, match="decoder layer 3 cannot be removed"):
        layer.refuse_removals(speech.family, config, {"decoder": 4}, [layer.parse_layer("3")])


def test_training_sees_the_logits_of_generation(speech: SpeechModel) -> None:
    """Bent softly: with a low cap every logit of both is within it, and they are equal."""
    speech.model.config.text_config.final_logit_softcapping = 2.0
    inputs, answer = tiny.ask(speech, [tiny.clip(1, 0.6)]), speech.answer_ids("Guten Tag.")
    batch = answer_batch(speech, inputs.input_ids, [answer], speech.states(inputs))
    with torch.no_grad():
        ours = SpeechLM(speech)(batch)
        stock = speech.model(**tiny.embedded(speech, inputs, [answer]), use_cache=False).logits
    assert 1.5 < ours.abs().max() <= 2
    torch.testing.assert_close(ours, stock[0, -len(answer) - 1 : -1], atol=1e-4, rtol=1e-4)


def test_a_sliding_layer_sees_its_window_and_a_full_one_all(speech: SpeechModel) -> None:
    """What lies more than a window back changes what a full layer gives at the end, and not what a sliding one does."""
    line, window = open_line(speech.family, speech), speech.model.config.text_config.sliding_window
    hidden = torch.randn(1, window + 6, 64, generator=torch.Generator().manual_seed(0))
    other = torch.cat([hidden[:, :5] + 1, hidden[:, 5:]], 1)
    columns = torch.arange(window + 6)[None]
    allowed = (columns[:, None, :] <= columns[:, :, None])[:, None]

    class NoCache:
        def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
            return keys, values

    context = line.context(hidden, columns, allowed, columns)
    for index, kind in enumerate(speech.model.config.text_config.layer_types):
        with torch.no_grad():
            one, two = (line.run_layer(index, states, context, NoCache())[0, -1] for states in (hidden, other))
        assert torch.equal(one, two) == (kind == "sliding_attention")


def test_suppressed_tokens_are_said_neither_in_generation_nor_in_ranking(speech: SpeechModel) -> None:
    prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
    encoded = [Features(speech, None).encode_waveform(sounds.clip("a"), tiny.clip(2, 0.7), prompt)]
    before = generate(speech, encoded, 8)[0]
    speech.model.generation_config.suppress_tokens = [before[0], *speech.stop_ids()]
    said = generate(speech, encoded, 8)[0]
    assert len(said) == 8 and before[0] not in said
    ranked = SpeculativeDecoder(speech, 8, 2**30).translate(encoded, [0], [None], {0: [before]})
    assert [one.ids for one in ranked] == [said]


def test_what_speech_does_not_run_is_not_trained(speech: SpeechModel) -> None:
    pictures = {name for name, _ in speech.model.named_parameters() if name.startswith("model.embed_vision.")}
    trained = {name for name, parameter in speech.model.named_parameters() if parameter.requires_grad}
    assert len(pictures) == 10 and not pictures & trained
    assert not [name for name in adapters.targets(speech, "all") if "vision" in name]
    assert "model.embed_audio.embedding_projection" in adapters.targets(speech, "all")


def test_freezing_an_encoder_that_is_not_there_is_refused(speech: SpeechModel) -> None:
    from sordino.config.schema import TrainSection

    with pytest.raises(RecipeError, match="a gemma4_unified model has no encoder"):
        trainer.freeze(speech, dataclasses.replace(TrainSection(), freeze=("encoder",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rank": {"method": "explicit", "layers": ["decoder.3"]}},
            "decoder layer 3 cannot be removed from a gemma4_u",
        ),
        (
            {"rank": {"method": "explicit", "layers": ["encoder.0"]}},
            "encoder layer 0 is out of range: this model has no encoder layers",
        ),
        ({"rank": {"scope": "encoder"}}, "rank.scope: a gemma4_unified model has no encoder layers"),
        ({"finetune": {"freeze": ["encoder"]}}, "finetune.freeze: a gemma4_unified model has no encoder"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    pico_dir: Callable[[str], Path],
    made: Made,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    recipe = recipe_file(tmp_path, pico_dir(NAME), made.corpus, changes)
    assert message in refusal(capsys, "run", recipe)
    assert not (tmp_path / "runs").exists()
