"""A sweep from one command: its points, the frontier and its knee, what is left out, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sordino.cli import main
from sordino.formats import registry as formats
from sordino.pipeline import translating
from tests.stages.runs import Made, answer, contents, jsonl, refusal, run

SMALL = {"of": ["student"], "budget_ratios": [0.4, 0.01]}


@pytest.fixture
def sweeping(made: Made, tmp_path: Path) -> Path:
    """A recipe beside a copy of the finished run."""
    return made.copied(tmp_path, {"sweep": SMALL | {"formats": ["nf4", "mixed"]}})


def test_a_sweep(
    made: Made, sweeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "runs/run"
    translate_timed = translating.translate_timed
    asked: list[str] = []

    def killed(recipe: Any, section: Any, model: Any, clips: Any, label: str) -> Any:
        asked.append(label)
        if label == "healed, mixed 40 %" and asked.count(label) == 1:
            raise KeyboardInterrupt
        return translate_timed(recipe, section, model, clips, label)

    monkeypatch.setattr(translating, "translate_timed", killed)
    assert main(["sweep", str(sweeping)]) == 130
    partial = there / "95-sweep.partial"
    assert (partial / "student-nf4" / "point.json").is_file()
    shutil.rmtree(partial / "student-nf4")  # what is scored is in the cache
    assert (partial / ".state" / "student-mixed-0.4" / "audit.json").is_file()  # made, and not made again
    (cached,) = (there / "cache" / "sweep").glob("student-nf4-*")
    scored = contents(cached)
    found = answer(capsys, "sweep", sweeping)
    assert asked == ["healed, nf4", "healed, mixed 40 %", "healed, mixed 40 %", "teacher without 1 layers"]
    assert contents(there / "95-sweep" / "student-nf4") == scored
    assert found["ran"] == ["sweep"]
    assert not list((there / "95-sweep").rglob("*.safetensors"))
    points = {point["system"]: point for point in found["points"]}
    chain = {"teacher", "pruned", "student", "adapter", "merged", "trimmed", "bf16", "nf4", "w4a16"}
    assert set(points) == chain | {"student-nf4", "student-mixed-0.4", "pruned-1"}
    teacher = points["teacher"]["bytes"]
    for point in points.values():
        assert point["ratio"] == pytest.approx(point["bytes"] / teacher)
        low, high = point["interval"]
        assert low <= point["chrf"] <= high
    assert points["student-mixed-0.4"]["ratio"] <= 0.4
    assert points["student-mixed-0.4"]["settings"] == [
        "export.of=student",
        "export.formats=[mixed]",
        "export.budget_ratio=0.4",
    ]
    assert list(found["left_out"]) == ["healed, mixed 1 %"]
    assert "is the smallest possible" in found["left_out"]["healed, mixed 1 %"]
    assert found["knee"] in found["frontier"] and set(found["frontier"]) <= set(points)
    audit = json.loads((there / "95-sweep/student-mixed-0.4/point.json").read_text())["audit"]
    assert audit["mixed"]["predicted_bytes"] == pytest.approx(points["student-mixed-0.4"]["bytes"], rel=0.01)
    page = (there / "95-sweep/sweep.html").read_text(encoding="utf-8")
    assert "†" not in page.split("</table>")[0]
    assert 'class="frontier"' in page and 'class="knee"' in page and "healed, mixed 40 %" in page
    capsys.readouterr()
    run("sweep", sweeping)
    out = capsys.readouterr().out
    assert "frontier\t" in out and "knee\t" in out and "left out\thealed, mixed 1 %" in out
    more = answer(capsys, "sweep", sweeping, "sweep.of=[student,pruned]", "sweep.formats=[nf4]")  # adds a point
    assert asked[4:] == ["pruned, nf4"] and {"student-nf4", "pruned-nf4"} < {p["system"] for p in more["points"]}
    again = made_by(sweeping, points["student-mixed-0.4"]["settings"], there)
    assert again == points["student-mixed-0.4"]["bytes"]
    clips, texts = (jsonl(there / f"{d}.jsonl") for d in ("10-data/test", "95-sweep/student-nf4/test"))
    assert [row["id"] for row in texts] == [row["id"] for row in clips]


def made_by(file: Path, settings: list[str], there: Path) -> int:
    """Bytes of the export that a point's settings make."""
    run("export", file, *settings)
    found: dict[str, Any] = json.loads((there / "70-export/mixed/audit.json").read_text())
    size: int = found["size"]["weights_bytes"]
    return size


def test_a_recipe_without_a_sweep_gets_the_usual_one(made: Made, tmp_path: Path) -> None:
    from sordino.config import recipe
    from sordino.pipeline.sweep_points import points_of

    loaded = recipe.load(made.recipe(tmp_path), ["sweep={}"])
    assert loaded.sweep
    planned = points_of(loaded, loaded.sweep, 2)
    keys = [point.key for point in planned]
    assert len(keys) == len(set(keys)) >= 8 and "pruned-1" in keys
    assert {point.of for point in planned} == {"teacher", "trimmed"}
    assert {point.form for point in planned} == set(formats.FORMATS) - {"bf16"} | {"pruned"}
    assert "trimmed-nf4" not in keys  # the chain exports and scores it
    twice = [
        p.key for p in points_of(recipe.load(made.recipe(tmp_path), ["sweep={}", "export.of=student"]), loaded.sweep, 0)
    ]
    assert "student-nf4" not in twice and not [key for key in twice if key.startswith("pruned")]


def test_a_format_that_cannot_be_made_is_left_out_by_name(
    made: Made, sweeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sordino.errors import FamilyError
    from sordino.formats import nf4

    def refuses(*_: Any) -> None:
        raise FamilyError("nf4 needs what is not installed.", "Install it.")

    monkeypatch.setattr(nf4, "write", refuses)
    found = answer(capsys, "sweep", sweeping, "sweep.budget_ratios=[]", "sweep.remove=[2]")
    assert found["left_out"] == {"healed, nf4": "nf4 needs what is not installed. Install it."}
    assert len(found["points"]) == 9


def test_a_sweep_needs_scores(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made.recipe(tmp_path, {"evaluate": {"metrics": ["bleu"]}})
    assert "sweep: needs translate, and evaluate with chrf among its metrics" in refusal(capsys, "sweep", file)
