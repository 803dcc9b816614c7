"""Healing on the teacher's probabilities: kept once, resumed after a kill, refused for another vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sordino.config import recipe as recipes
from sordino.config.schema import LogitsSection
from sordino.data import manifest
from sordino.errors import RecipeError
from sordino.models import loading, prompts
from sordino.models.answers import SpeechLM, encoded_batch
from sordino.models.features import Features
from sordino.pipeline import forecast, planning, runner, teacher_logits
from sordino.training import teacher_rows
from sordino.training.objectives import Distillation, cross_entropy
from sordino.vocabulary.tokenizer import without_weights
from tests.stages.runs import Made, contents, refusal, run, stage_json, write_longer

HEALED = ["10-data", "20-teacher", "30-ranking", "40-pruned", "50-pseudo"]
LOGITS: dict[str, Any] = {"weight": 0.8, "top": 5}
SHARD = 6  # answers a file: several files of the pico corpus


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_logits, "SHARD", SHARD)


def healed(made: Made, directory: Path, section: dict[str, Any], stages: list[str] = HEALED) -> Path:
    run("distil", made.copied(directory, {"distil": section}, stages))
    return directory / "runs/run"


def files_of(there: Path) -> list[Path]:
    return sorted((there / "cache" / teacher_logits.DIRECTORY).glob("*/*.safetensors"))


@pytest.fixture(scope="module")
def straight(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run healed on probabilities without a kill."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_logits, "SHARD", SHARD)
        return healed(made, tmp_path_factory.mktemp("straight"), {"logits": LOGITS})


def test_what_is_kept_is_what_the_teacher_predicts(made: Made, straight: Path) -> None:
    """Against the stock model's own forward pass, one pair at a time."""
    record = stage_json(straight / "60-student")["teacher_logits"]
    files = files_of(straight)
    assert len(files) == -(-stage_json(straight / "60-student")["mix"]["total"] // SHARD) > 1
    assert record["bytes"] == sum(file.stat().st_size for file in files)
    assert record["positions"] == sum(len(load_file(file)["ids"]) for file in files)
    assert "20-teacher" in [parent["path"] for parent in stage_json(straight / "60-student")["parents"]]
    assert "20-teacher" not in [parent["path"] for parent in stage_json(made.finished / "60-student")["parents"]]

    recipe = recipes.load(straight.parents[1] / "recipe.yaml")
    speech = loading.load_checkpoint(str(straight / "20-teacher"), device="cpu", dtype="float32")
    prompt = prompts.render(speech, recipe.prompt, recipe.source, recipe.target)
    clip = manifest.read(straight / "10-data/train.jsonl")[1]
    answers = [
        speech.answer_ids(clip.target_text or "") for clip in manifest.read(straight / "10-data/train.jsonl")[:2]
    ]
    first = len(answers[0])
    batch = encoded_batch(speech, [Features(speech, None).encode(clip, prompt)], [answers[1]])
    with torch.no_grad():
        expected = SpeechLM(speech)(batch).log_softmax(-1).topk(5)
    rows = teacher_rows.StoredRows(files[0], first, len(answers[1])).read()
    assert torch.equal(rows.ids.long(), expected.indices)
    assert torch.allclose(rows.logs[:, :5].float(), expected.values, rtol=2e-3, atol=2e-3)


def test_probabilities_change_what_is_learnt_and_weight_0_changes_nothing(
    made: Made, straight: Path, tmp_path: Path
) -> None:
    plain = healed(made, tmp_path, {"logits": {"weight": 0.0}})
    weights = "60-student/model.safetensors"
    assert (plain / weights).read_bytes() == (made.finished / weights).read_bytes()
    assert (straight / weights).read_bytes() != (plain / weights).read_bytes()
    assert not files_of(plain)


def test_a_kill_between_two_files_ends_with_the_same_bytes(
    made: Made, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    store, written = teacher_rows.store, []

    def fatal(rows: Any, file: Path) -> None:
        if len(written) == 2:
            raise Killed
        written.append(file)
        store(rows, file)

    monkeypatch.setattr(teacher_rows, "store", fatal)
    with pytest.raises(Killed):
        healed(made, tmp_path, {"logits": LOGITS})
    assert len(files_of(tmp_path / "runs/run")) == 2
    again: list[Path] = []
    monkeypatch.setattr(teacher_rows, "store", lambda rows, file: (again.append(file), store(rows, file)))
    run("distil", tmp_path / "recipe.yaml")
    there = tmp_path / "runs/run"
    assert [file.name for file in written + again] == [file.name for file in files_of(straight)]
    assert [file.read_bytes() for file in files_of(there)] == [file.read_bytes() for file in files_of(straight)]
    assert contents(there / "60-student").keys() == contents(straight / "60-student").keys()
    for name in ("model.safetensors", "log.jsonl"):
        assert (there / "60-student" / name).read_bytes() == (straight / "60-student" / name).read_bytes()


def test_other_settings_of_the_training_read_the_same_files(
    made: Made, straight: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The teacher is opened once: neither another weight, nor the adapter's training on the same pairs, needs it."""
    there = healed(made, tmp_path, {"logits": LOGITS})
    before = [file.read_bytes() for file in files_of(there)]

    def none(*_: object) -> None:
        raise AssertionError("the teacher was opened again")

    monkeypatch.setattr(teacher_logits, "_fill", none)
    changes = {"distil": {"logits": LOGITS | {"weight": 0.5, "ce_only_end": 0.4}}, "qlora": {"logits": LOGITS}}
    file = made.recipe(tmp_path, changes)
    run("distil", file, "--yes")
    run("qlora", file)
    assert [file.read_bytes() for file in files_of(there)] == before
    assert "teacher_logits" in stage_json(there / "61-adapter")


def test_the_last_steps_are_on_texts_alone() -> None:
    teacher = teacher_logits.TeacherLogits(LogitsSection(weight=0.8, ce_only_end=0.25), {})
    losses = [teacher.objective_at(step / 8) for step in range(8)]
    assert losses[:6] == [Distillation(0.8)] * 6
    assert losses[6:] == [cross_entropy] * 2


def test_a_damaged_file_is_refused_by_name_and_made_again_once_deleted(
    made: Made, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = healed(made, tmp_path, {"logits": LOGITS})
    bad = files_of(there)[1]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    file = made.recipe(tmp_path, {"distil": {"logits": LOGITS | {"weight": 0.5}}})
    assert f"{bad.name}, the teacher's probabilities, cannot be used" in refusal(capsys, "distil", file, "--yes")
    bad.unlink()
    run("distil", file, "--yes")
    assert bad.read_bytes() == whole


def test_a_student_of_another_vocabulary_is_refused(made: Made, tmp_path: Path) -> None:
    pruned = made.finished / "40-pruned"
    longer = write_longer(pruned, tmp_path / "longer", "der Zug ist da " * 20)
    teacher = without_weights(str(made.finished / "20-teacher"))
    with pytest.raises(RecipeError, match="is to learn its probabilities, another"):
        teacher_logits.refuse_other_vocabulary(teacher, without_weights(str(longer)))
    rows = loading.load_checkpoint(str(pruned), device="cpu").model.get_output_embeddings().weight.shape[0]
    assert teacher_logits.refuse_other_vocabulary(teacher, without_weights(str(pruned))) == rows


def test_settings_that_would_do_nothing_are_refused(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unused = made.recipe(tmp_path / "unused", {"distil": {"logits": {"top": 3}}})
    assert "distil.logits.top: not used without distil.logits.weight" in refusal(capsys, "plan", unused)
    changes = {"finetune": None, "pseudolabel": None, "distil": {"logits": LOGITS, "mix": {"pseudo": False}}}
    changes["qlora"] = {"mix": {"pseudo": False}}
    no_teacher = made.recipe(tmp_path / "none", changes)
    assert "distil.logits: needs the finetune section" in refusal(capsys, "plan", no_teacher)


def test_a_plan_says_how_much_the_cache_will_hold(made: Made, straight: Path) -> None:
    recipe = recipes.load(straight.parents[1] / "recipe.yaml")
    config = forecast.config_of(recipe)
    assert config
    ahead = forecast.forecast(recipe, config)
    assert ahead["qlora"].cache is None
    clips = [clip for name in ("10-data", "50-pseudo") for clip in manifest.read(straight / name / "train.jsonl")]
    tokens = round(4 * sum(clip.seconds or 0.0 for clip in clips))
    assert ahead["distil"].cache == tokens * (5 * 4 + 6 * 2)
    plain = recipes.load(straight.parents[1] / "recipe.yaml", ["distil.logits.weight=0", "distil.logits.top=64"])
    assert forecast.forecast(plain, config)["distil"].cache is None
    notes = planning.told_of(recipe, runner.plan(recipe, config))["note"]
    assert not [note for note in notes if "probabilities" in note]  # they are there
    other = recipes.load(straight.parents[1] / "recipe.yaml", ["distil.lr=0.5"])
    notes = planning.told_of(other, runner.plan(other, config))["note"]
    assert [note for note in notes if note.startswith("distil keeps the teacher's probabilities in the run's cache: ~")]
