"""Using what a run made: every kind of model translates audio files, text files are scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sordino.config import card
from sordino.config.card import Card
from sordino.config.schema import SYSTEM_PROMPT, PromptSection
from sordino.errors import ArtifactError, DataError, FamilyError, RecipeError
from sordino.inference import translation
from tests.data import sounds
from tests.models import fake_vllm
from tests.stages.runs import Made, answer, jsonl, refusal, run
from tests.tiny import clip

KEYS = ["id", "audio", "text", "seconds", "tokens"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three clips, not in the order of their length or name."""
    folder = tmp_path_factory.mktemp("audio")
    named = {"c.wav": 0.9, "a.flac": 0.4, "b.mp3": 1.3}
    return [str(sounds.save(folder / name, clip(i, seconds))) for i, (name, seconds) in enumerate(named.items())]


@pytest.mark.parametrize("name", ["20-teacher", "40-pruned", "61-adapter", "62-merged", "70-export/nf4"])
def test_every_kind_of_model_translates(made: Made, files: list[str], name: str) -> None:
    rows = translation.translate_files(str(made.finished / name), files, target="de", device="cpu", max_new_tokens=5)
    assert [list(row) for row in rows] == [KEYS] * 3
    assert [row["audio"] for row in rows] == files
    assert [row["id"] for row in rows] == ["c", "a", "b"]
    assert all(row["seconds"] > 0 and 0 <= row["tokens"] <= 5 for row in rows)
    alone = translation.translate_files(
        str(made.finished / name), files[1:2], target="de", device="cpu", max_new_tokens=5
    )
    assert alone[0]["text"] == rows[1]["text"]


def test_a_model_of_a_run_is_asked_as_it_was_trained(made: Made, tmp_path: Path) -> None:
    """The translations of the run, once more, from nothing but the model's directory."""
    clips = jsonl(made.finished / "10-data" / "test.jsonl")
    found = jsonl(made.finished / "80-outputs" / "student" / "test.jsonl")
    student = made.finished / "60-student"
    rows = translation.translate_files(
        str(student), [c["audio"] for c in clips], target="de", device="cpu", max_new_tokens=6
    )
    assert [row["text"] for row in rows] == [row["text"] for row in found]
    assert card.read(student) == Card(PromptSection(system=SYSTEM_PROMPT), "en", "de")
    assert card.read(made.model) == Card()


def test_a_text_file_is_no_audio_and_all_bad_files_are_named(made: Made, files: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("hello")
    with pytest.raises(DataError) as caught:
        translation.translate_files(str(made.model), [str(text), files[0], str(tmp_path / "gone.wav")], target="de")
    assert "text.wav" in str(caught.value)
    assert "gone.wav" in str(caught.value)
    assert files[0] not in str(caught.value)


def test_what_is_no_model_is_refused(made: Made, files: list[str], tmp_path: Path) -> None:
    def refused(model: Path) -> str:
        with pytest.raises((FamilyError, ArtifactError)) as caught:
            translation.translate_files(str(model), files[:1], target="de", device="cpu")
        return str(caught.value)

    assert "there is no model directory" in refused(tmp_path / "gone")
    assert "holds some: bf16, nf4" in refused(made.finished / "70-export")
    assert "holds no config.json" in refused(tmp_path)
    adapter = tmp_path / "run" / "61-adapter"
    shutil.copytree(made.finished / "61-adapter", adapter)
    assert "60-student" in refused(adapter)  # the base it names is not there
    (adapter / "stage.json").unlink()
    assert "no stage.json of the stage that trained it" in refused(adapter)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"model_type": "bert"}')
    assert "models of type 'bert' are not supported; supported: " in refused(strange)
    damaged = tmp_path / "damaged"
    shutil.copytree(made.model, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"{weights} is truncated or damaged" in refused(damaged)
    edited = tmp_path / "edited"
    shutil.copytree(made.model, edited)
    config = json.loads((edited / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4
    (edited / "config.json").write_text(json.dumps(config))
    assert "must be equal to the number of `layer_types` (6)" in refused(edited)


def test_an_unknown_device_is_refused(made: Made, files: list[str]) -> None:
    for device in ("warp", "cuda:99"):
        with pytest.raises(RecipeError, match=f"device: '{device}' cannot be used here"):
            translation.translate_files(str(made.model), files[:1], target="de", device=device)


def test_vllm_translates_from_outside_and_does_not_go_on_with_ours(
    made: Made, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SORDINO_VLLM", str(tmp_path / "nowhere"))
    words = ["translate", made.model, *files, "--to", "de", "--device", "cpu", "--max-new-tokens", "5"]
    ours = answer(capsys, *words)
    assert "vllm_env.sh" in refusal(capsys, *words, "--engine", "vllm")
    monkeypatch.setenv("SORDINO_VLLM", str(fake_vllm.install(tmp_path / "vllm")))
    theirs = answer(capsys, *words, "--engine", "vllm")
    assert [row["text"] for row in theirs["hypotheses"]] == [row["text"] for row in ours["hypotheses"]]
    run(*words, "--out", tmp_path / "out")
    message = refusal(capsys, *words, "--out", tmp_path / "out", "--engine", "vllm")
    assert "engine" in message
