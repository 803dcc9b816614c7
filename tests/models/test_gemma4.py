"""Gemma 4 E2B and E4B: layers' own embeddings, shared keys and values, and what is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sordino.errors import FamilyError, RecipeError
from sordino.models import loading, stored
from sordino.models.answers import SpeechLM, answer_batch
from sordino.models.speech import SpeechModel
from sordino.pruning import layers
from tests import tiny
from tests.stages.runs import Made, recipe_file, refusal, run

NAME = "gemma4"


@pytest.fixture
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return tiny.fresh(pico(NAME))


def test_training_sees_the_logits_of_the_stock_model(speech: SpeechModel) -> None:
    """The layers' own embeddings of the prompt and the answer go along, the pad token's in place of audio."""
    wave, answer = tiny.clip(1, 0.8), speech.answer_ids("Guten Tag.")
    inputs = tiny.ask(speech, [wave])
    stock = tiny.stock_inputs(speech, wave, tiny.QUESTION.instruction)
    ids = torch.cat([stock["input_ids"], torch.tensor([answer])], 1)
    audio = {name: stock[name] for name in ("input_features", "input_features_mask")}
    with torch.no_grad():
        expected = speech.model(input_ids=ids, **audio, use_cache=False).logits[0, -len(answer) - 1 : -1]
        ours = SpeechLM(speech)(answer_batch(speech, inputs.input_ids, [answer], speech.states(inputs)))
    torch.testing.assert_close(ours, expected, atol=5e-4, rtol=1e-4)


def test_the_numbers_beside_clipped_layers_count(speech: SpeechModel) -> None:
    inputs = tiny.ask(speech, [tiny.clip(1, 0.8)])
    before = tiny.logits(speech, inputs)
    for name, bound in speech.model.named_buffers():
        if name.endswith("output_max"):
            bound.fill_(0.1)
    assert not torch.allclose(tiny.logits(speech, inputs), before, atol=1e-2)


def test_a_clip_shorter_than_a_frame_is_refused(speech: SpeechModel) -> None:
    with pytest.raises(ValueError, match="shorter than a frame"):
        tiny.ask(speech, [tiny.clip(0, 0.01)])


def test_no_decoder_layer_goes_but_encoder_layers_do(speech: SpeechModel) -> None:
    with pytest.raises(RecipeError, match="no decoder layer can be removed from a gemma4 model: its layers share"):
        layers.prune(speech, "decoder", [0, 1, 3])
    layers.prune(speech, "encoder", [0, 2])
    assert speech.layer_count("encoder") == speech.model.config.audio_config.num_hidden_layers == 2


def test_weights_of_shared_layers_that_the_published_files_hold_are_passed_over(
    pico_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(pico_dir(NAME), tmp_path / "in")
    weights = load_file(tmp_path / "in" / "model.safetensors")
    for name in ("k_proj", "v_proj", "k_norm"):
        full = f"model.language_model.layers.3.self_attn.{name}.weight"
        assert full not in weights
        weights[full] = weights[full.replace("layers.3", "layers.1")].clone()
    save_file(weights, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    speech = loading.load_checkpoint(str(tmp_path / "in"), device="cpu")
    model = stored.open_model(str(tmp_path / "in"))
    assert speech.model.state_dict().keys() == model.speech.model.state_dict().keys()
    assert not [name for name in model.sources() if "layers.3.self_attn.k_proj" in name]


def test_trimming_cuts_both_tables(pico_dir: Callable[[str], Path], made: Made, tmp_path: Path) -> None:
    plain: dict[str, Any] = dict.fromkeys(("finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge"))
    changes = plain | {"trim": {}, "export": {"formats": ["nf4"]}, "evaluate": {"bootstrap": 0}}
    run("run", recipe_file(tmp_path, pico_dir(NAME), made.corpus, changes))
    out = tmp_path / "runs" / "run" / "63-trimmed"
    rows = json.loads((out / "coverage.json").read_text())["rows"]["after"]
    text = json.loads((out / "config.json").read_text())["text_config"]
    assert text["vocab_size"] == text["vocab_size_per_layer_input"] == rows
    weights = load_file(out / "model.safetensors")
    cut = {name: tensor.shape[0] for name, tensor in weights.items() if "embed_tokens" in name}
    assert cut == dict.fromkeys(
        ["model.language_model.embed_tokens.weight", "model.language_model.embed_tokens_per_layer.weight"], rows
    )


def test_healing_is_an_adapter_on_the_whole_model(pico_dir: Callable[[str], Path], made: Made, tmp_path: Path) -> None:
    left_out: dict[str, Any] = dict.fromkeys(("finetune", "rank", "prune", "pseudolabel", "distil", "trim"))
    changes = left_out | {
        "qlora": {"max_steps": 2, "mix": {"pseudo": False}},
        "export": {"formats": ["w4a16", "mixed"]},
    }
    changes["export"]["budget_ratio"] = 0.9
    run("run", recipe_file(tmp_path, pico_dir(NAME), made.corpus, changes))
    assert (tmp_path / "runs" / "run" / "85-scores" / "scores.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no decoder layer can be removed from a gemma4 model: its layers share keys and values"),
        (
            {"rank": None, "prune": None, "distil": None, "export": {"formats": ["w4a16-gptq"]}},
            "w4a16-gptq is not written of gemma4",
        ),
    ],
)
def test_what_is_not_supported_is_refused_before_anything_runs(
    pico_dir: Callable[[str], Path],
    made: Made,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    assert message in refusal(capsys, "run", recipe_file(tmp_path, pico_dir(NAME), made.corpus, changes))
    assert not (tmp_path / "runs").exists()


def test_the_unified_models_files_are_refused(pico_dir: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(pico_dir(NAME), tmp_path / "in")
    shutil.copy(pico_dir("gemma4_unified") / "processor_config.json", tmp_path / "in")
    with pytest.raises(FamilyError, match="this model needs Gemma4AudioFeatureExtractor"):
        loading.load_checkpoint(str(tmp_path / "in"), device="cpu")
