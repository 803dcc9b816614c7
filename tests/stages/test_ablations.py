"""Every variant a recipe can ask for runs: scopes, criteria, methods, healing, adapters, prompts, mixes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino.models import registry
from sordino.pipeline import results
from sordino.pruning.ranking import Ranking
from sordino.pruning.scoring import ClipScorer
from tests.stages.runs import Made, jsonl, run, stage_json, write_corpus

TEACHER = ["10-data", "20-teacher"]
RANKED = [*TEACHER, "30-ranking", "40-pruned", "50-pseudo"]
STUDENT = [*RANKED, "60-student"]


def ranking(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "runs/run/30-ranking/ranking.json").read_text())
    return found


def layers_of(directory: Path, name: str) -> tuple[int, int]:
    config = json.loads((directory / "runs/run" / name / "config.json").read_text())
    return config["text_config"]["num_hidden_layers"], config["audio_config"]["encoder_layers"]


@pytest.mark.parametrize(
    ("section", "left"),
    [
        ({"scope": "encoder", "remove": 1}, (6, 2)),
        ({"scope": "both", "protect_first": 2, "protect_last": 0, "remove": 2}, None),
        ({"criterion": "loss"}, (4, 3)),
        ({"criterion": "bleu", "remove": 1}, (5, 3)),
        ({"criterion": "chrf", "remove": 1}, (5, 3)),
        ({"method": "middle", "remove": 2}, (4, 3)),
        ({"method": "middle", "remove": 1, "scope": "both"}, (5, 2)),
        ({"method": "block", "remove": 2}, (4, 3)),
        ({"criterion": "loss", "remove": 2, "polish": "swap"}, (4, 3)),
        ({"criterion": "chrf", "remove": 2, "polish": "swap", "search": "racing"}, (4, 3)),
        ({"method": "explicit", "layers": [3, "encoder.0", "decoder.5"], "remove": 8}, (4, 2)),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_rankings(made: Made, tmp_path: Path, section: dict[str, Any], left: tuple[int, int] | None) -> None:
    file = made.copied(tmp_path, {"rank": {"clips": 2} | section}, TEACHER)
    run("rank", file)
    run("prune", file)
    found = ranking(tmp_path)
    kept = json.loads((tmp_path / "runs/run/40-pruned/kept.json").read_text())
    counts = layers_of(tmp_path, "40-pruned")
    assert counts == (len(kept["decoder"]), len(kept["encoder"]))
    assert sum(counts) == 9 - len(found["order"])
    assert left is None or counts == left
    if section.get("method") == "middle" and "scope" not in section:
        assert found["order"] == ["decoder.2", "decoder.3"]
    if section.get("method") == "explicit":
        assert found["order"] == ["decoder.3", "encoder.0", "decoder.5"]
    if "method" not in section:
        trials = jsonl(tmp_path / "runs/run/30-ranking/trials.jsonl")
        assert trials[0]["layer"] is None
        assert found["criterion"] == section.get("criterion", "chrf++")
    if section.get("method") == "block":
        distances = stage_json(tmp_path / "runs/run/30-ranking")["block_distances"]
        assert [*distances] == ["decoder.1", "decoder.2", "decoder.3"]  # the first and the last layer are protected
        first = min(distances, key=lambda layer: distances[layer])
        assert found["order"] == [first, f"decoder.{int(first[-1]) + 1}"]
    if "polish" in section:
        swaps = stage_json(tmp_path / "runs/run/30-ranking")["swaps"]
        assert bool(swaps) == ("searched" in found)
        assert any("without" in row for row in trials)


def test_swaps_go_on_from_a_finished_ranking(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from one that is older than the setting: its trials are not run again."""
    plain = {"criterion": "loss", "remove": 2}
    run("rank", made.copied(tmp_path, {"rank": plain}, TEACHER))
    there = tmp_path / "runs/run/30-ranking"
    searched, record = jsonl(there / "trials.jsonl"), stage_json(there)
    del record["section"]["polish"]
    (there / "stage.json").write_text(json.dumps(record))
    asked: list[int] = []
    trials = ClipScorer.trials

    def counted(self: ClipScorer, number: int, *given: Any) -> Any:
        asked.append(number)
        return trials(self, number, *given)

    monkeypatch.setattr(ClipScorer, "trials", counted)
    run("rank", made.recipe(tmp_path, {"rank": plain | {"polish": "swap"}}))
    assert min(asked) > 2, "no round of the search"
    assert jsonl(there / "trials.jsonl")[: len(searched)] == searched
    swapped = (there / "ranking.json").read_bytes(), (there / "trials.jsonl").read_bytes()
    straight = tmp_path / "straight"
    run("rank", made.copied(straight, {"rank": plain | {"polish": "swap"}}, TEACHER))
    there = straight / "runs/run/30-ranking"
    assert ((there / "ranking.json").read_bytes(), (there / "trials.jsonl").read_bytes()) == swapped


@pytest.mark.parametrize("scope", ["decoder", "both"])
def test_a_race(made: Made, tmp_path: Path, scope: str) -> None:
    section = {"search": "racing", "scope": scope, "protect_first": 0, "protect_last": 0, "remove": 2}
    file = made.copied(tmp_path, {"rank": section}, TEACHER)
    run("rank", file)
    run("prune", file)
    found = ranking(tmp_path)
    trials = jsonl(tmp_path / "runs/run/30-ranking/trials.jsonl")
    clips = trials[0]["clips"]
    first, last = found["removals"]
    assert first["clips"] <= clips == last["clips"]  # the last winner meets all clips
    assert any(t["clips"] < clips for t in trials)
    assert found["order"] == [first["layer"], last["layer"]]
    assert sum(layers_of(tmp_path, "40-pruned")) == 7
    shown_removals = results.removals(Ranking.from_json(found))
    for removal, shown in zip(found["removals"], shown_removals, strict=True):
        assert (shown.layer, shown.clips, shown.score) == (removal["layer"], removal["clips"], removal["score"])
        of_it = [t for t in trials if f"{t['scope']}.{t['layer']}" == removal["layer"]]
        assert (removal["clips"], removal["score"]) in [(t["clips"], t["score"]) for t in of_it]


def test_fewer_removals_than_were_ranked(made: Made, tmp_path: Path) -> None:
    file = made.copied(tmp_path, {"prune": {"remove": 1}}, RANKED)
    run("prune", file)
    assert layers_of(tmp_path, "40-pruned") == (5, 3)
    assert stage_json(tmp_path / "runs/run/40-pruned")["removed"] == ranking(tmp_path)["order"][:1]


def test_healing_after_each_removal(made: Made, tmp_path: Path) -> None:
    changes = {"distil": {"heal": "each", "max_steps": 2, "freeze": ["encoder"]}}
    file = made.copied(tmp_path, changes, RANKED)
    run("distil", file)
    assert layers_of(tmp_path, "60-student") == (4, 3)
    stage = stage_json(tmp_path / "runs/run/60-student")
    assert [p["path"] for p in stage["parents"]] == ["20-teacher", "30-ranking", "10-data", "50-pseudo"]
    logs = [len(jsonl(tmp_path / f"runs/run/60-student/log-{i}.jsonl")) for i in (1, 2)]
    assert logs == [2, 2]


@pytest.mark.parametrize(
    "section",
    [
        {"scope": "decoder"},
        {"quantize": "none", "rslora": False, "dropout": 0.1},
        {"start": "teacher", "gradient_checkpointing": True, "accumulate": 2},
        {"start": "pruned", "mix": {"authentic": False}},
    ],
    ids=["decoder", "unquantized", "teacher", "pruned"],
)
def test_adapters(made: Made, tmp_path: Path, section: dict[str, Any]) -> None:
    changes = {"qlora": {"max_steps": 1} | section, "export": None, "evaluate": None, "report": None}
    changes["translate"] = {"systems": ["adapter"], "max_new_tokens": 2}
    file = made.copied(tmp_path, changes, STUDENT)
    run("run", file)
    adapter = tmp_path / "runs/run/61-adapter"
    targets = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    in_decoder = [name for name in targets if name.startswith("model.language_model.")]
    assert in_decoder
    assert (in_decoder == targets) == (section.get("scope") == "decoder")
    start = section.get("start", "student")
    assert stage_json(adapter)["start"] == start
    assert layers_of(tmp_path, "62-merged")[0] == (6 if start == "teacher" else 4)
    assert len(jsonl(tmp_path / "runs/run/80-outputs/adapter/test.jsonl")) == 4


def test_a_run_without_a_teacher_prunes_the_base(made: Made, tmp_path: Path) -> None:
    changes: dict[str, Any] = dict.fromkeys(("finetune", "pseudolabel", "qlora", "merge", "export"))
    changes |= {"distil": {"mix": {"pseudo": False}, "max_steps": 1}, "rank": {"method": "middle"}}
    changes |= {"translate": {"systems": ["base", "student"]}, "evaluate": {"metrics": ["chrF"]}}
    run("run", made.copied(tmp_path, changes, ["10-data"]))
    there = tmp_path / "runs/run"
    assert stage_json(there / "40-pruned")["parents"][0]["path"] == str(made.model)
    texts = [
        [(row["id"], row["text"]) for row in jsonl(root / "80-outputs/base/test.jsonl")]
        for root in (there, made.finished)
    ]
    assert texts[0] == texts[1]
    assert "no retention" in (there / "90-report/report.html").read_text()


@pytest.mark.parametrize(
    ("prompt", "said", "end"),
    [
        ({"style": "base"}, "<|AUDIO|><|audio_eos|>Translate the English speech into German:", "<|endoftext|>"),
        (
            {"example": ["Good day.", "Guten Tag."], "system": None, "instruction": "{source} to {target}:"},
            "English to German: Good day.<|im_end|>\n<|im_start|>assistant\nGuten Tag.<|im_end|>",
            "<|im_end|>",
        ),
    ],
    ids=["base", "one-shot"],
)
def test_prompts(made: Made, tmp_path: Path, prompt: dict[str, Any], said: str, end: str) -> None:
    file = made.copied(tmp_path, {"prompt": prompt, "finetune": {"max_steps": 1}}, ["10-data"])
    run("finetune", file)
    run("pseudolabel", file)
    there = tmp_path / "runs/run"
    rendered = stage_json(there / "20-teacher")["prompt"]
    assert said in rendered
    assert rendered == stage_json(there / "50-pseudo")["prompt"]
    family = registry.get("qwen2_audio")
    assert family.chat.answers_end_with[prompt.get("style", "chat")] == end


def test_the_mix(made: Made, tmp_path: Path) -> None:
    write_corpus(tmp_path / "extra", ("train",) * 6, start=40)
    data = {"extra": {"path": str(tmp_path / "extra"), "rows": 5}}
    mix = {"oversample": 2, "extra": 3, "pseudo": False}
    changes = {"data": data, "finetune": {"max_steps": 1}, "rank": {"method": "middle"}}
    changes |= {"distil": {"max_steps": 1, "mix": mix}, "pseudolabel": None}
    file = made.copied(tmp_path, changes | {"qlora": None, "merge": None}, [])
    for stage in ("prepare", "finetune", "rank", "prune", "distil"):
        run(stage, file)
    there = tmp_path / "runs/run"
    assert stage_json(there / "10-data")["clips"] == {"train": 10, "select": 4, "dev": 2, "test": 4, "extra": 5}
    counts = {"in_domain_pairs": 10, "without_duplicates": 10, "extra": 3, "total": 23}
    assert stage_json(there / "60-student")["mix"] == counts


def test_splits_by_segment_say_that_they_leak(made: Made, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ("",) * 12)
    splits = {"select": 2, "dev": 0, "test": 0.25, "by": "segment"}
    file = made.recipe(tmp_path, {"data": {"path": str(corpus), "splits": splits}})
    run("prepare", file)
    stage = stage_json(tmp_path / "runs/run/10-data")
    assert stage["leaking_split"] is True
    assert stage["clips"] == {"train": 7, "select": 2, "test": 3}
