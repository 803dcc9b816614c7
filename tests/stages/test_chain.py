"""The whole chain on a pico model: every artefact, nothing run twice, only what depends on a change run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino.models import loading, registry
from tests.stages.runs import Made, answer, contents, jsonl, run, stage_json

CHECKPOINT = {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "sordino.json"}
FILES = {
    "10-data": {"train.jsonl", "select.jsonl", "dev.jsonl", "test.jsonl"},
    "20-teacher": CHECKPOINT | {"log.jsonl"},
    "30-ranking": {"trials.jsonl", "ranking.json"},
    "40-pruned": CHECKPOINT | {"kept.json"},
    "50-pseudo": {"train.jsonl"},
    "60-student": CHECKPOINT | {"log.jsonl"},
    "61-adapter": {"adapter_model.safetensors", "adapter_config.json", "log.jsonl", "sordino.json"},
    "62-merged": CHECKPOINT,
    "63-trimmed": CHECKPOINT | {"coverage.json"},
    "70-export": {
        f"{form}/{name}" for form in ("bf16", "nf4", "w4a16") for name in (*CHECKPOINT, "audit.json", "README.md")
    },
    "80-outputs": {f"{key}/{name}" for key in ("base", "student", "nf4") for name in ("test.jsonl", "speed.json")},
    "85-scores": {"scores.json", "size.json", "speed.json"},
    "90-report": {"scores.json", "size.json", "speed.json", "report.html", "recipe.yaml"},
}
SYSTEMS = ["base", "teacher", "pruned", "student", "adapter", "merged", "trimmed", "bf16", "nf4", "w4a16"]


@pytest.mark.parametrize("directory", FILES)
def test_every_artefact_is_there(made: Made, directory: str) -> None:
    there = set(contents(made.finished / directory))
    assert FILES[directory] <= there
    assert not {name for name in there if "/." in f"/{name}"}
    stage = stage_json(made.finished / directory)
    promised = {"section", "parents", "versions", "git", "seed", "device", "seconds", "peak_memory_bytes", "complete"}
    assert promised <= set(stage)
    assert stage["complete"] is True
    assert set(stage["outputs"]) == there - {"stage.json"}
    assert stage["parents"]
    for parent in stage["parents"]:
        above = made.finished / parent["path"]
        assert not (above / "stage.json").exists() or stage_json(above)["hash"] == parent["hash"]


def test_the_splits_are_disjoint_by_group(made: Made) -> None:
    splits = {name: jsonl(made.finished / "10-data" / f"{name}.jsonl") for name in ("train", "select", "dev", "test")}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 10, "select": 4, "dev": 2, "test": 4}
    groups = [{row["group"] for row in rows} for rows in splits.values()]
    assert all(not one & other for i, one in enumerate(groups) for other in groups[:i])


def test_the_layers_that_were_ranked_are_the_ones_that_went(made: Made) -> None:
    ranking = json.loads((made.finished / "30-ranking" / "ranking.json").read_text())
    kept = json.loads((made.finished / "40-pruned" / "kept.json").read_text())
    gone = [int(name.removeprefix("decoder.")) for name in ranking["order"]]
    assert len(gone) == 2
    assert not {0, 5} & set(gone)
    assert kept == {"decoder": [i for i in range(6) if i not in gone], "encoder": [0, 1, 2]}
    for name in ("40-pruned", "60-student", "62-merged", "70-export/nf4", "70-export/w4a16"):
        config = json.loads((made.finished / name / "config.json").read_text())
        assert config["text_config"]["num_hidden_layers"] == 4
        assert config["tie_word_embeddings"] is False


def test_the_pruned_model_is_the_teacher_without_those_layers(made: Made) -> None:
    kept = json.loads((made.finished / "40-pruned" / "kept.json").read_text())["decoder"]
    teacher, pruned = (
        loading.load_checkpoint(str(made.finished / name), device="cpu", dtype="bfloat16")
        for name in ("20-teacher", "40-pruned")
    )
    for new, old in enumerate(kept):
        one, other = (m.layers("decoder")[i].state_dict() for m, i in ((teacher, old), (pruned, new)))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_pseudo_labels_carry_their_origin(made: Made) -> None:
    rows = jsonl(made.finished / "50-pseudo" / "train.jsonl")
    teacher = stage_json(made.finished / "20-teacher")["hash"][:16]
    assert {row["origin"] for row in rows} == {f"teacher:{teacher}"}
    record = stage_json(made.finished / "50-pseudo")
    assert record["clips"] == 10
    assert len(rows) == 10 - record["empty"]
    mix = stage_json(made.finished / "60-student")["mix"]
    assert mix["total"] == mix["without_duplicates"] == 10 + len(rows) - record["same_as_reference"]


def test_scores_sizes_and_speeds_are_of_every_system(made: Made) -> None:
    scores, size, speed = (
        json.loads((made.finished / "90-report" / f"{name}.json").read_text()) for name in ("scores", "size", "speed")
    )
    assert list(scores["systems"]) == list(size) == list(speed) == SYSTEMS
    assert scores["split"] == "test"
    for entry in scores["systems"].values():
        assert set(entry["scores"]) == {"bleu", "chrf", "chrf++"}
        assert all(s["signature"] and s["interval"] and len(s["segments"]) == 4 for s in entry["scores"].values())
    assert size["nf4"]["weights_bytes"] < size["bf16"]["weights_bytes"] < size["teacher"]["weights_bytes"]
    assert size["adapter"]["weights_bytes"] > size["student"]["weights_bytes"]  # with the base it needs
    assert all(s["model"]["decoder_layers"] == (6 if key in SYSTEMS[:2] else 4) for key, s in speed.items())
    page = (made.finished / "90-report" / "report.html").read_text()
    assert all(word in page for word in ("healed", "QLoRA adapter", "export nf4"))


def test_the_prompt_is_one_for_training_and_use(made: Made) -> None:
    prompts = {stage_json(made.finished / name)["prompt"] for name in ("20-teacher", "50-pseudo", "60-student")}
    assert len(prompts) == 1
    assert "Translate the English speech into German:" in prompts.pop()
    card = json.loads((made.finished / "70-export" / "nf4" / "sordino.json").read_text())
    assert card["prompt"]["system"] == "You are a professional translator."


def test_a_second_run_does_nothing(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _ = made.finished
    before = {p: p.stat().st_mtime_ns for p in made.finished.rglob("*")}
    found = answer(capsys, "run", made.recipe(made.root))
    assert found["ran"] == []
    assert list(found["scores"]["systems"]) == SYSTEMS
    assert {p: p.stat().st_mtime_ns for p in made.finished.rglob("*")} == before


def test_a_stage_that_was_only_to_be_renamed_is_not_run_again(made: Made, tmp_path: Path) -> None:
    """Killed just before its directory was put into place, its child asked for next."""
    file = made.copied(tmp_path, stages=["10-data", "20-teacher", "30-ranking", "40-pruned"])
    there = tmp_path / "runs/run"
    before = contents(there / "30-ranking")
    (there / "30-ranking").rename(there / "30-ranking.partial")
    (there / "30-ranking.partial/.request.json").write_text("{}")
    run("prune", file)
    run("rank", file)
    assert contents(there / "30-ranking") == before
    assert not list(there.glob("*.partial"))


ACCELERATOR = torch.accelerator.is_available()
ALL = ["prepare", "finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge", "trim", "export"]
ALL += ["translate", "evaluate", "report"]


@pytest.mark.parametrize(
    ("changes", "first_why", "runs"),
    [
        ({}, None, []),
        ({"report": {"samples": 1}}, "settings changed: samples", ["report"]),
        ({"evaluate": {"bootstrap": 5}}, "settings changed: bootstrap", ["evaluate", "report"]),
        ({"export": {"formats": ["nf4"]}}, "made from other inputs: 70-export", ALL[10:]),
        ({"export": {"formats": ["nf4", "w4a16-gptq"]}}, "settings changed: formats", ALL[9:]),
        ({"qlora": {"rank": 2}}, "settings changed: rank", ALL[6:]),
        ({"prune": {"remove": 1}}, "settings changed: remove", ["prune", *ALL[5:]]),
        ({"rank": {"criterion": "bleu"}}, "settings changed: criterion", ["rank", "prune", *ALL[5:]]),
        ({"finetune": {"lr": 2e-3}}, "settings changed: lr", ALL[1:]),
        ({"seed": 1}, "settings changed: seed", ALL),
        pytest.param({"device": "auto"}, None, [], marks=pytest.mark.skipif(ACCELERATOR, reason="auto is no CPU")),
    ],
)
def test_only_what_depends_on_a_change_runs_again(
    made: Made, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], first_why: str | None, runs: list[str]
) -> None:
    _ = made.finished
    file = made.recipe(made.root / "changed", changes)
    plan = answer(capsys, "plan", file, f"out={made.root / 'runs'}")["plan"]
    assert [line["stage"] for line in plan] == ALL
    assert [line["stage"] for line in plan if line["runs"]] == runs
    assert next((line["why"] for line in plan if line["runs"]), None) == first_why
    assert all(line["bytes"] > 0 and line["seconds"] is not None for line in plan)


def test_a_changed_input_is_named(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made.copied(tmp_path)
    (tmp_path / "runs/run/50-pseudo/train.jsonl").unlink()
    plan = {line["stage"]: line["why"] for line in answer(capsys, "plan", file)["plan"]}
    assert plan["pseudolabel"] == "train.jsonl is missing"
    assert plan["finetune"] is None
    registry.get("qwen2_audio").tiny(str(tmp_path / "other"), 6, 3, 2)
    plan = {line["stage"]: line["why"] for line in answer(capsys, "plan", file, f"model={tmp_path / 'other'}")["plan"]}
    assert plan["finetune"].startswith("made from other inputs: ")
    assert "other" in plan["finetune"]
    assert plan["prepare"] is None


def test_a_change_runs_what_the_plan_says(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made.copied(tmp_path)
    found = answer(capsys, "run", file, "evaluate.bootstrap=5", "report.samples=1")
    assert found["ran"] == ["evaluate", "report"]
    assert found["scores"]["systems"]["base"]["scores"]["bleu"]["interval"]


def test_check_finds_a_flipped_byte(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made.copied(tmp_path, stages=["10-data", "60-student"])
    assert answer(capsys, "check", file)["problems"] == []
    weights = tmp_path / "runs/run/60-student/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    (tmp_path / "runs/run/10-data/dev.jsonl").unlink()
    (tmp_path / "runs/run/10-data/extra.txt").write_text("x")
    from sordino.cli import main

    capsys.readouterr()
    assert main(["check", str(file)]) == 2
    err = capsys.readouterr().err
    assert "60-student/model.safetensors: changed" in err
    assert "10-data/dev.jsonl: missing" in err
    assert "10-data/extra.txt: not of this stage" in err


def test_a_run_can_move(made: Made, tmp_path: Path) -> None:
    """Paths inside a run are relative: the adapter finds its base in the copy."""
    made.copied(tmp_path, stages=["60-student", "61-adapter"])
    config = json.loads((tmp_path / "runs/run/61-adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../60-student"
    run("translate", tmp_path / "runs/run/61-adapter", made.corpus / "clip00.flac", "--to", "de", "--max-new-tokens", 2)
