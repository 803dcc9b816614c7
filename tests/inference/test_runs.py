"""A run in place of a model: the best of its exports translates, its models are listed, and languages are minded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sordino.inference import model as models
from sordino.inference import runs
from tests.stages.runs import Made, answer, refusal, run

Capsys = pytest.CaptureFixture[str]
KEYS = ["teacher", "pruned", "student", "adapter", "merged", "trimmed", "bf16", "nf4", "w4a16"]


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """A copy of the finished run's directory."""
    made.copied(tmp_path)
    return tmp_path / "runs/run"


def give_scores(directory: Path, **scores: float) -> None:
    file = directory / "85-scores/scores.json"
    record = json.loads(file.read_text())
    for name, value in scores.items():
        record["systems"][name]["scores"]["chrf"] |= {"value": value, "interval": [value - 2, value + 2]}
    file.write_text(json.dumps(record))


def test_the_models_of_a_run_are_listed(copy: Path, capsys: Capsys) -> None:
    found = answer(capsys, "inspect", copy)
    assert found["run"] == str(copy)
    assert [row["model"] for row in found["models"]] == KEYS
    assert all(row["weights_bytes"] > 0 and row["chrf"] is not None for row in found["models"])
    assert [row["path"] for row in found["models"]][-2:] == [f"{copy}/70-export/nf4", f"{copy}/70-export/w4a16"]
    run("inspect", copy)
    out = capsys.readouterr().out
    assert "export nf4" in out and "healed" in out


def test_the_export_that_scored_best_translates(made: Made, copy: Path, capsys: Capsys) -> None:
    give_scores(copy, teacher=99.0, bf16=10.0, nf4=30.0, w4a16=20.0)
    words = (made.corpus / "clip00.flac", "--max-new-tokens", "3", "--device", "cpu")
    (row,) = answer(capsys, "translate", copy, *words)["hypotheses"]
    assert f"translating with {copy}/70-export/nf4 (chrF 30.0)" in " ".join(_err(capsys, copy, *words).split())
    (alone,) = answer(capsys, "translate", copy / "70-export/nf4", *words)["hypotheses"]
    assert row["text"] == alone["text"]
    best = runs.best(copy)
    assert best and best.key == "nf4"
    give_scores(copy, bf16=30.5, nf4=10.0, w4a16=29.0)
    best = runs.best(copy)
    assert best and best.key == "w4a16"  # as good as the best one, and smaller


def _err(capsys: Capsys, *words: str | Path) -> str:
    capsys.readouterr()
    run("translate", *words)
    return capsys.readouterr().err


def test_without_scores_a_run_is_asked_about(made: Made, copy: Path, capsys: Capsys) -> None:
    shutil.rmtree(copy / "85-scores")
    clip = made.corpus / "clip00.flac"
    message = refusal(capsys, "translate", copy, clip)
    assert f"{copy} is a run of 9 models, and none of them is scored. Give one: {copy}/20-teacher, " in message
    assert f"{copy}/70-export/w4a16." in message
    for name in ("bf16", "w4a16"):
        shutil.rmtree(copy / "70-export" / name)
    best = runs.best(copy)
    assert best and best.key == "nf4"  # the only export
    shutil.rmtree(copy / "70-export")
    assert runs.best(copy) is None
    for model in runs.models_of(copy)[1:]:
        shutil.rmtree(model.path)
    best = runs.best(copy)
    assert best and best.key == "teacher"
    shutil.rmtree(best.path)
    assert "is a run without a finished model" in refusal(capsys, "translate", copy, clip)


def test_a_model_is_no_run(made: Made, tmp_path: Path) -> None:
    assert runs.chosen(str(made.model)) == (str(made.model), None)
    assert runs.chosen("owner/name") == ("owner/name", None)
    assert runs.chosen(str(tmp_path)) == (str(tmp_path), None)


@pytest.mark.parametrize(
    ("source", "target", "warning"),
    [
        (None, None, None),
        ("English", "German", None),
        ("en-GB", "de-AT", None),
        (None, "fr", "was trained to translate into German, not French"),
        (None, "Klingon", "was trained to translate into German, not Klingon"),
        ("zh", None, "was trained to listen to English, not Chinese"),
    ],
)
def test_a_language_that_a_model_was_not_trained_for(
    made: Made, source: str | None, target: str | None, warning: str | None
) -> None:
    path = str(made.finished / "60-student")
    said = models.untrained(path, *models.languages_of(path, source, target))
    assert said is None if warning is None else warning in str(said)
    assert models.untrained(str(made.model), "en", "fr") is None  # nothing says what it was trained for


def test_the_warning_is_one_line_and_no_refusal(made: Made, capsys: Capsys) -> None:
    student, clip = made.finished / "60-student", made.corpus / "clip00.flac"
    words = (student, clip, "--to", "fr", "--max-new-tokens", "3")
    err = _err(capsys, *words)
    assert err.count("was trained to translate into German, not French") == 1
