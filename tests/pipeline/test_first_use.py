"""What a first use meets: nothing finished is replaced unasked, known work is taken over, plans say what comes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from sordino.cli import main, replacing
from sordino.config import recipe as recipes
from sordino.config.schema import RankSection
from sordino.errors import ArtifactError, FamilyError
from sordino.formats import registry as formats
from sordino.pipeline import ranking, runner
from sordino.runtime import progress
from tests.stages.runs import Made, answer, contents, jsonl, recipe_file, refusal, run, stage_json, write_corpus

Capsys = pytest.CaptureFixture[str]


def test_an_export_stays_when_another_is_asked_for(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.copied(tmp_path)
    there = tmp_path / "runs/run/70-export"
    before = contents(there)
    run("export", file, "export.formats=[w4a16-gptq]", "export.calibration=4")
    after = contents(there)
    assert {name: data for name, data in after.items() if name in before and name != "stage.json"} == {
        name: data for name, data in before.items() if name != "stage.json"
    }
    assert stage_json(there)["section"]["formats"] == ["bf16", "nf4", "w4a16", "w4a16-gptq"]
    assert answer(capsys, "run", file)["ran"] == []  # the report is of what is there
    assert answer(capsys, "check", file)["problems"] == []


def test_the_prompt_of_an_export_is_recorded_whatever_was_there_before(made: Made, tmp_path: Path) -> None:
    prompt = stage_json(made.finished / "20-teacher")["prompt"]
    assert stage_json(made.finished / "70-export")["prompt"] == prompt
    file = made.copied(tmp_path)
    changed = ("export.formats=[mixed]", "export.budget_ratio=0.5", "export.sensitivity.clips=2")
    run("export", file, *changed)
    there = tmp_path / "runs/run/70-export"
    there.rename(there.with_name("before"))
    run("export", file, *changed)  # its costs are in the cache
    assert stage_json(there)["prompt"] == stage_json(there.with_name("before"))["prompt"] == prompt


def test_sizes_do_not_count_what_a_kill_left(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sordino.runtime import files

    file = made.copied(tmp_path, {"export": {"formats": ["nf4"]}}, ["10-data", "62-merged", "63-trimmed"])
    write = files.write_json

    def killed(path: Path, value: Any) -> None:
        if path.name == "audit.json":
            path.with_name(f".{path.name}.77.tmp").write_text(json.dumps(value))
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", killed)
        assert main(["export", str(file)]) == 130
    partial = tmp_path / "runs/run/70-export.partial"
    assert list(partial.rglob("*.tmp"))
    run("export", file)
    audits = [(root / "70-export/nf4/audit.json").read_bytes() for root in (tmp_path / "runs/run", made.finished)]
    assert audits[0] == audits[1]
    assert not list((tmp_path / "runs/run").rglob("*.tmp"))


@pytest.mark.parametrize("command", ["run", "rank"])
def test_finished_work_is_replaced_only_when_that_was_said(
    made: Made, tmp_path: Path, capsys: Capsys, command: str
) -> None:
    file = made.copied(tmp_path)
    before = finished(tmp_path)
    (tmp_path / "runs/run-2").mkdir()
    message = refusal(capsys, command, file, "rank.remove=1")
    count = "8 finished stages" if command == "run" else "a finished stage"
    assert f"this replaces {count} that took " in message
    assert "rank (" in message and "rank: settings changed: remove." in message
    assert message.endswith("Add --yes to replace them, or name=run-3 to keep both.\n")
    assert finished(tmp_path) == before
    assert refusal(capsys, command, file, "rank.remove=1", "--json")
    run("rank", file, "rank.remove=1", "--yes")
    assert len(json.loads((tmp_path / "runs/run/30-ranking/ranking.json").read_text())["order"]) == 1


def finished(directory: Path) -> dict[str, bytes]:
    """All of a run but its cache."""
    return {name: data for name, data in contents(directory / "runs").items() if "/cache/" not in name}


def test_what_costs_little_or_was_never_finished_is_not_asked_about(made: Made, tmp_path: Path) -> None:
    file = made.copied(tmp_path, stages=["10-data", "20-teacher", "80-outputs", "85-scores", "90-report"])
    there = tmp_path / "runs/run"
    (there / "30-ranking.partial").mkdir()
    asked: list[str] = []
    lines = runner.lines_of(recipes.load(file, ["evaluate.bootstrap=5", "export=", "translate.systems=[base,teacher]"]))
    assert [line.stage for line in lines if line.why is None] == ["prepare", "finetune"]
    assert [line.stage for line in lines if line.replaces] == ["translate"]  # evaluate and report follow from it
    recipe = recipes.load(file, ["prune=", "distil=", "qlora=", "merge=", "trim=", "export=", "pseudolabel="])
    runner.run_one("rank", recipe, {}, lambda lines: asked.extend(line.stage for line in lines))
    assert asked == []


def test_a_terminal_is_asked(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    lines = [runner.Planned("rank", "30-ranking", "settings changed: remove", 1, 132.0, True)]
    recipe = recipes.load(made.recipe(tmp_path))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def asked(answer: str) -> None:
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        monkeypatch.setattr("sys.stderr", Terminal())
        replacing.allow(recipe, yes=False)(lines)

    asked("y\n")
    for answer_ in ("n\n", "\n", ""):
        with pytest.raises(ArtifactError, match="nothing was replaced"):
            asked(answer_)
    assert "a finished stage that took 2.2 min: rank (2.2 min)" in replacing.summary(lines)
    replacing.allow(recipe, yes=True)(lines)


@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize("remove", [1, 3])
def test_a_ranking_takes_what_a_longer_or_shorter_one_has_tried(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, racing: bool, remove: int
) -> None:
    words = [f"rank.search={'racing' if racing else 'exact'}", "rank.criterion=chrf"]
    straight = made.copied(tmp_path / "straight", stages=["10-data", "20-teacher"])
    run("rank", straight, *words, f"rank.remove={remove}")
    file = made.copied(tmp_path, stages=["10-data", "20-teacher"])
    run("rank", file, *words, "rank.remove=2")
    score, rounds = ranking.ClipScorer.trials, []

    def counted(scorer: Any, number: int, *rest: Any) -> Any:
        rounds.append(number)
        return score(scorer, number, *rest)

    monkeypatch.setattr(ranking.ClipScorer, "trials", counted)
    run("rank", file, *words, f"rank.remove={remove}", "--yes")
    assert set(rounds) <= ({3} if remove == 3 else {1} if racing else set())
    one, other = (root / "runs/run/30-ranking" for root in (tmp_path, tmp_path / "straight"))
    for name in ("trials.jsonl", "ranking.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_killed_ranking_goes_on_to_another_length(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = made.copied(tmp_path, stages=["10-data", "20-teacher"])
    append = ranking.files.append_jsonl

    def killed(path: Path, *rows: Any) -> None:
        append(path, *rows)
        if path.name == "trials.jsonl" and len(jsonl(path)) == 6:  # in the second round
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ranking.files, "append_jsonl", killed)
        assert main(["rank", str(file)]) == 130
    partial = tmp_path / "runs/run/30-ranking.partial/trials.jsonl"
    kept = jsonl(partial)
    kept[0]["hypotheses"] = kept[0]["hypotheses"] and ["a mark"] * len(kept[0]["hypotheses"])
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
    run("rank", file, "rank.remove=1")
    rows = jsonl(tmp_path / "runs/run/30-ranking/trials.jsonl")
    assert [row["round"] for row in rows] == [0] + [1] * 4
    assert rows == kept[:5]


def test_a_plan_says_what_took_how_long_and_what_will_be_refused(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.copied(tmp_path)
    run("plan", file, "distil.lr=1e-4")
    out = capsys.readouterr().out
    assert " took " in out and " takes " not in out
    assert "to run: ~" in out and "done: " in out
    assert "note: `run` will replace finished stages, and asks before, or wants --yes: distil, qlora, merge" in out
    (tmp_path / "runs/run/30-ranking.partial").mkdir()
    told = answer(capsys, "plan", file)
    assert told["refused"] == told["not_installed"] == []
    assert told["note"] == [f"{tmp_path}/runs/run/30-ranking.partial is unfinished work of other settings, and may go"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data.path=nowhere"], "nowhere is not a directory."),
        (["target=fr"], "lacks the column 'text_fr' or 'target_text'."),
        (["model=nowhere"], "there is no model directory nowhere."),
        (["data.corpus=foldr"], "There is no corpus 'foldr'. Did you mean 'folder'?"),
    ],
)
def test_what_prepare_would_refuse_is_in_the_plan_and_first_in_a_run(
    made: Made, tmp_path: Path, capsys: Capsys, words: list[str], problem: str
) -> None:
    file = made.recipe(tmp_path)
    told = answer(capsys, "plan", file, *words)
    assert [problem in message for message in told["refused"]] == [True]
    capsys.readouterr()
    run("plan", file, *words)
    assert problem in capsys.readouterr().out
    assert problem in refusal(capsys, "run", file, *words)
    assert not (tmp_path / "runs/run").exists() or not list((tmp_path / "runs/run").glob("10-*"))


def test_strangers_files_are_in_the_plan(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.recipe(tmp_path)
    (tmp_path / "runs/run/70-export").mkdir(parents=True)
    (tmp_path / "runs/run/70-export/mine.txt").write_text("years")
    (message,) = answer(capsys, "plan", file)["refused"]
    assert "70-export/mine.txt is not of sordino's making" in message
    assert refusal(capsys, "run", file) == f"sordino: {message}\n"  # before any stage begins
    assert sorted(p.name for p in (tmp_path / "runs/run").iterdir() if p.name != "cache") == ["70-export"]


def test_a_format_that_is_not_installed_is_marked_and_refused_by_run_alone(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        if name == "gguf-q4_0":
            raise FamilyError("GGUF models need x, which is not installed.", "Run: pip install '.[gguf]'.")

    monkeypatch.setattr(formats, "require", missing)
    file = made.recipe(tmp_path, {"export": {"formats": ["nf4", "gguf-q4_0"]}})
    told = answer(capsys, "plan", file)
    assert told["not_installed"] == [
        "gguf-q4_0: GGUF models need x, which is not installed. Run: pip install '.[gguf]'."
    ]
    (line,) = [line for line in told["plan"] if line["stage"] == "export"]
    assert line["not_installed"] == ["gguf-q4_0"]
    run("plan", file)
    assert "gguf-q4_0 not installed" in capsys.readouterr().out
    assert "which is not installed" in refusal(capsys, "run", file)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"export": {"formats": ["nf4"], "budget_gb": 4, "calibration": 9}},
            [
                "export.budget_gb: not used, since 'mixed' is not among the formats",
                "export.calibration: not used, since 'w4a16-gptq' is not among the formats",
            ],
        ),
        (
            {"sweep": {"formats": ["nf4"], "budget_ratios": [0.3]}},
            ["sweep.budget_ratios: not used, since 'mixed' is not among the formats"],
        ),
        ({"sweep": {}}, []),
    ],
)
def test_settings_that_are_void_are_named_and_harmless(
    made: Made, tmp_path: Path, capsys: Capsys, changes: dict[str, Any], lines: list[str]
) -> None:
    assert answer(capsys, "plan", made.recipe(tmp_path, changes))["note"] == lines


def test_a_budget_above_the_16_bit_size_is_said_and_nothing_is_measured(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sordino.pipeline.mixed_precision import MixedPrecision

    monkeypatch.setattr(MixedPrecision, "measure", lambda _: pytest.fail("measured"))
    changes = {"export": {"formats": ["mixed"], "budget_gb": 4}}
    file = made.copied(tmp_path, changes, ["10-data", "20-teacher", "30-ranking", "62-merged", "63-trimmed"])
    note, *_ = answer(capsys, "plan", file)["note"]
    assert note.startswith("export.budget_gb: 4,000.0 MB are no less than the ")
    assert note.endswith("format mixed will be a 16-bit copy")
    run("export", file)
    assert note in capsys.readouterr().err
    trimmed, mixed = tmp_path / "runs/run/63-trimmed", tmp_path / "runs/run/70-export/mixed"
    assert (mixed / "model.safetensors").read_bytes() == (trimmed / "model.safetensors").read_bytes()


def test_a_run_says_where_it_is_and_what_to_use(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    _ = made.finished
    capsys.readouterr()
    run("run", made.recipe(made.root))
    out, err = capsys.readouterr()
    assert "[1/13] prepare: done" in err and "[13/13] report: done" in err
    assert out.splitlines()[-1].startswith("The scores are at the floor: the best BLEU")  # three steps of training


def test_a_refusal_is_told_apart_from_an_interruption(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "clip01.flac").write_bytes(b"")
    file = recipe_file(tmp_path, made.model, corpus)
    refusal(capsys, "prepare", file)
    (line,) = [line for line in answer(capsys, "plan", file)["plan"] if line["stage"] == "prepare"]
    assert line["why"] == "was refused the last time"


def test_a_training_says_its_losses_where_there_is_no_terminal(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "note", said.append)
    monkeypatch.setattr("sordino.pipeline.fitting.note", said.append)
    run("finetune", made.copied(tmp_path, stages=["10-data"]))
    log = jsonl(tmp_path / "runs/run/20-teacher/log.jsonl")
    assert said[0] == f"  every step's loss: {tmp_path}/runs/run/20-teacher.partial/log.jsonl"
    assert len(said) == 1 + len(log) == 4
    for number, (line, row) in enumerate(zip(said[1:], log, strict=True), 1):
        assert line.startswith(f"  training the teacher: step {number} of 3, loss {row['loss']:.4f}")
        assert line.endswith(" left")
    assert f"dev loss {log[-1]['dev_loss']:.4f}" in said[-1]


def test_lines_of_a_long_training_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "note", said.append)
    with progress.step_bar("training", 1001, 1) as advance:
        for step in range(2, 1002):
            advance(f"loss {step}", keep=step == 3)
    assert len(said) == 1 + 20 + 1
    assert said[0].startswith("  training: step 3 of 1001, loss 3, ")
    assert said[-1].startswith("  training: step 1001 of 1001, loss 1001, 0:00:00 left")


def test_rank_section_names_what_may_change() -> None:
    from sordino.stages import rank

    assert {*rank.STAGE.resumable} <= {*RankSection.__dataclass_fields__}


def test_a_check_does_not_call_intact_what_is_not_finished(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.recipe(tmp_path)
    run("check", file)
    assert "no stage is finished" in capsys.readouterr().out
    file = made.copied(tmp_path, stages=["10-data"])
    run("check", file)
    assert "1 finished stages, all intact" in capsys.readouterr().out
    (tmp_path / "runs/run/20-teacher").mkdir()
    assert main(["check", str(file)]) == 2
    assert "20-teacher: no finished stage (it has no stage.json)" in capsys.readouterr().err


def test_a_sweep_lists_its_points_first(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.copied(tmp_path)
    words = ("sweep.of=[student]", "sweep.formats=[nf4]", "sweep.remove=[1]")
    capsys.readouterr()
    run("sweep", file, *words)
    err = capsys.readouterr().err
    first = err.index("2 points to make, beside the chain's own systems:")
    assert first < err.index("healed, nf4: ~") < err.index("teacher without 1 layers: ~") < err.index("point 1 of 2")
    run("sweep", file, *words, "report.samples=3", "evaluate.bootstrap=20")
    run("sweep", file, *words, "sweep.remove=[1,2]")
    assert "healed, nf4: scored already" in capsys.readouterr().err
