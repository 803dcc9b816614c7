"""Stages that hand out their work, with workers in this process: what they write is what one process writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sordino.cli import main
from sordino.pipeline import teacher_logits, workers
from tests.in_process import InProcess
from tests.stages.runs import Made, answer, contents, jsonl, run, stage_json

HEALED = ["10-data", "20-teacher", "30-ranking", "40-pruned", "50-pseudo"]
ON_RAY: dict[str, Any] = {"resources": {"executor": "ray"}}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that need no cluster."""

    @contextmanager
    def open_workers(job: Any, open_state: Any) -> Iterator[InProcess[Any]]:
        yield InProcess(open_state("cpu"), 3)

    monkeypatch.setattr(workers, "open_workers", open_workers)


def texts(directory: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        file.parent.name: [(row["id"], row["text"]) for row in jsonl(file)] for file in directory.glob("*/test.jsonl")
    }


def test_ranking_and_labels_are_those_of_one_process(made: Made, tmp_path: Path) -> None:
    recipe = made.copied(tmp_path, ON_RAY, ["10-data", "20-teacher"])
    run("rank", recipe)
    run("pseudolabel", recipe)
    there = tmp_path / "runs/run"
    for stage in ("30-ranking", "50-pseudo"):
        assert stage_json(there / stage)["outputs"] == stage_json(made.finished / stage)["outputs"]


def test_mbr_draws_the_same_samples(made: Made, tmp_path: Path) -> None:
    mbr = {"pseudolabel": {"method": "mbr", "samples": 3, "max_new_tokens": 12}}
    for name, changes in (("alone", mbr), ("handed", mbr | ON_RAY)):
        run("pseudolabel", made.copied(tmp_path / name, changes, ["10-data", "20-teacher"]))
    one, other = (contents(tmp_path / name / "runs/run/50-pseudo") for name in ("alone", "handed"))
    assert one["candidates.jsonl"] == other["candidates.jsonl"] and one["train.jsonl"] == other["train.jsonl"]


def test_clips_encoded_in_batches_are_recorded_and_those_of_one_process(made: Made, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"encode_batch": 3, "rank": {"criterion": "influence"}}
    for name, more in (("alone", {}), ("handed", ON_RAY)):
        run("rank", made.copied(tmp_path / name, changes | more, ["10-data", "20-teacher"]))
    alone, handed = (tmp_path / name / "runs/run" for name in ("alone", "handed"))
    record = stage_json(alone / "30-ranking")
    assert record["section"]["encode_batch"] == 3
    assert stage_json(handed / "30-ranking")["outputs"] == record["outputs"]
    states = [
        {f.relative_to(run): f.read_bytes() for f in (run / "cache").rglob("*.safetensors")} for run in (alone, handed)
    ]
    assert states[0] == states[1]
    before = {file.parent.name for file in (made.finished / "cache").rglob("*.safetensors")}
    assert states[0] and not before & {file.parent.name for file in states[0]}


def test_a_killed_driver_goes_on_from_what_is_written(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translated: list[int] = []

    class Dying(InProcess[Any]):
        """Ends the process that hands out the work after two batches, as Ctrl-C does."""

        def run(self, work: Any, tasks: Any, label: str) -> Iterator[tuple[int, Any]]:
            for place, result in super().run(work, tasks, label):
                if label == "batch":
                    translated.append(place)
                yield place, result
                if translated == [3, 2]:
                    translated.append(-1)
                    raise KeyboardInterrupt

    @contextmanager
    def open_workers(job: Any, open_state: Any) -> Iterator[InProcess[Any]]:
        yield Dying(open_state("cpu"), 3)

    monkeypatch.setattr(workers, "open_workers", open_workers)
    recipe = made.copied(tmp_path, ON_RAY, ["10-data", "20-teacher"])
    assert main(["pseudolabel", str(recipe)]) == 130
    rows = jsonl(tmp_path / "runs/run/50-pseudo.partial/.state/pseudo.jsonl")
    assert 0 < len(rows) < 10
    run("pseudolabel", recipe)
    assert translated == [3, 2, -1, 1, 0]
    there = tmp_path / "runs/run/50-pseudo"
    assert stage_json(there)["outputs"] == stage_json(made.finished / "50-pseudo")["outputs"]


def test_the_teachers_probabilities_are_those_of_one_process(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several files, whose batches come back in another order, and what is trained on them."""
    monkeypatch.setattr(teacher_logits, "SHARD", 6)
    monkeypatch.setattr(teacher_logits, "TEACHER_BATCH", 4)
    handed_out: list[int] = []
    hand_out = teacher_logits._hand_out
    monkeypatch.setattr(
        teacher_logits, "_hand_out", lambda *given: (handed_out.append(len(given[1])), hand_out(*given))[1]
    )
    changes: dict[str, Any] = {"distil": {"logits": {"weight": 0.8, "top": 5}}}
    for name, more in (("alone", {}), ("handed", ON_RAY)):
        run("distil", made.copied(tmp_path / name, changes | more, HEALED))
    alone, handed = (tmp_path / name / "runs/run" for name in ("alone", "handed"))
    files = sorted(file.relative_to(alone) for file in (alone / "cache/teacher-logits").rglob("*.safetensors"))
    assert handed_out == [len(files)] and len(files) > 2
    assert [(handed / file).read_bytes() for file in files] == [(alone / file).read_bytes() for file in files]
    assert stage_json(handed / "60-student")["outputs"] == stage_json(alone / "60-student")["outputs"]


def test_points_are_those_of_one_process(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"sweep": {"of": ["student"], "formats": ["nf4", "mixed"], "budget_ratios": [0.4, 0.01]}}
    points = {}
    for name, changes in (("alone", small), ("handed", small | ON_RAY)):
        recipe = made.copied(tmp_path / name, changes)
        points[name] = answer(capsys, "sweep", recipe)
    for key in ("left_out", "frontier", "knee"):
        assert points["handed"][key] == points["alone"][key]
    alone, handed = (tmp_path / name / "runs/run/95-sweep" for name in ("alone", "handed"))
    assert texts(handed) == texts(alone) and set(texts(handed)) == {"student-nf4", "student-mixed-0.4", "pruned-1"}
    scores = [json.loads((place / "student-nf4/point.json").read_text())["scores"] for place in (handed, alone)]
    assert scores[0] == scores[1]


def test_translations_are_those_of_one_process(made: Made, tmp_path: Path) -> None:
    systems = {"translate": {"max_new_tokens": 6, "systems": ["teacher", "nf4"]}} | ON_RAY
    recipe = made.copied(tmp_path, systems, ["10-data", "20-teacher", "63-trimmed", "70-export"])
    run("translate-test", recipe)
    one = texts(made.finished / "80-outputs")
    assert texts(tmp_path / "runs/run/80-outputs") == {name: one[name] for name in ("teacher", "nf4")}
