"""The plan's predictions: the paper's recipes by their figures, and a finished run by its files."""

import json

import pytest

from sordino import cli
from sordino.config import recipe
from sordino.pipeline import launching, token_selection
from sordino.pipeline.forecast import RANK_BATCH_BYTES, config_of, forecast
from tests.models.test_shapes import QWEN2_AUDIO_7B


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "q7.json"
    file.write_text(json.dumps(QWEN2_AUDIO_7B))
    return file


def gigabytes(found, stage, name="size"):
    return f"{getattr(found[stage], name) / 1e9:.2f}"


def test_the_papers_systems(config):
    b = forecast(recipe.load("recipes/paper_b_en_de.yaml"), QWEN2_AUDIO_7B, "cuda")
    assert gigabytes(b, "finetune") == "16.79"
    assert gigabytes(b, "prune") == gigabytes(b, "distil") == gigabytes(b, "merge") == "13.56"
    assert gigabytes(b, "qlora") == "0.67"
    assert gigabytes(b, "export") == "5.41"
    assert b["prune"].memory < 0.05e9 and gigabytes(b, "export", "memory") == "0.34"
    parts = b["finetune"].parts
    assert round((parts["weights"] + parts["gradients"] + parts["moments"]) / 1e9) == 67
    assert gigabytes(b, "finetune", "resume") == "50.37"
    assert "prepare" not in b and "report" not in b
    a = forecast(recipe.load("recipes/paper_a_en_de.yaml"), QWEN2_AUDIO_7B, "cuda")
    assert (gigabytes(a, "qlora"), gigabytes(a, "export")) == ("0.83", "6.24")


def test_a_finished_run_weighs_what_was_predicted(made):
    """Weights to 0.1 % (the JSON in 4-bit weights varies), other files as many bytes as the base model's, to 10 %."""
    run = made.finished
    loaded = recipe.load(made.root / "recipe.yaml")
    found = forecast(loaded, config_of(loaded))
    beside = sum(f.stat().st_size for f in made.model.iterdir() if f.suffix != ".safetensors")
    stages = {"finetune": "20-teacher", "prune": "40-pruned", "distil": "60-student"}
    stages |= {"merge": "62-merged", "trim": "63-trimmed"}
    for stage, directory in (stages | {"qlora": "61-adapter", "export": "70-export"}).items():
        weights = sum(f.stat().st_size for f in (run / directory).rglob("*.safetensors"))
        times = {"qlora": 0, "export": 3}.get(stage, 1)
        assert found[stage].size - times * beside == pytest.approx(weights, rel=1e-3), stage
    teacher = [f.stat().st_size for f in (run / "20-teacher").iterdir()]
    assert found["finetune"].size == pytest.approx(sum(teacher), rel=0.1)


def test_before_the_teacher_has_translated_the_corpus_alone_is_counted(made, tmp_path):
    unread = recipe.load(made.recipe(tmp_path / "unread"))
    read = recipe.load(made.copied(tmp_path / "read", stages=["10-data"]))
    assert token_selection.rows_left(unread) is None
    assert token_selection.rows_left(read) == 262  # this tokenizer is bytes: nothing to drop
    for one in (unread, read):
        found = forecast(one, config_of(one))
        assert found["trim"].size == found["merge"].size


def test_the_command_says_what_is_missing(config, capsys):
    assert cli.main(["plan", "recipes/paper_b_en_de.yaml"]) == 0
    out = capsys.readouterr().out
    assert "unknown" in out and "hf download Qwen/Qwen2-Audio-7B-Instruct config.json" in out.replace("\n", " ")
    ask = ["plan", "recipes/paper_b_en_de.yaml", "--config", str(config), "--predict-for", "cuda", "--formulas"]
    assert cli.main(ask) == 0
    out = capsys.readouterr().out
    assert "unknown" not in out and "~16.794 GB" in out and "4.127 bits a weight" in out
    assert cli.main([*ask, "--json"]) == 0
    lines = {line["stage"]: line for line in json.loads(capsys.readouterr().out)["plan"]}
    assert lines["export"]["forecast"]["size"] == pytest.approx(5.41e9, rel=1e-3)
    assert lines["prepare"]["forecast"] is None


def test_the_memory_of_batches_is_the_ranking_s():
    from sordino.pruning import speculative

    assert RANK_BATCH_BYTES == speculative.SMALL_MEMORY


def test_a_plan_with_resources_says_what_each_device_takes(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launching, "available", lambda device: 2)
    changed = ["resources.devices=4", "resources.tflops=400", "finetune.batch_size=16", "finetune.max_steps=500"]
    loaded = recipe.load("recipes/paper_b_en_de.yaml", [*changed, "distil.batch_size=16", "qlora.batch_size=16"])
    found = forecast(loaded, QWEN2_AUDIO_7B, "cuda")
    for stage in ("finetune", "distil", "qlora"):
        assert list(found[stage].devices) == [1, 2, 4, 8]
        assert found[stage].memory == found[stage].devices[4]["peak"]
    teacher = found["finetune"].devices
    held = {n: sum(each[part] for part in ("weights", "gradients", "moments")) for n, each in teacher.items()}
    assert {n: round(size / 1e9) for n, size in held.items()} == {1: 67, 2: 34, 4: 17, 8: 8}
    assert teacher[2]["activations"] > teacher[8]["activations"]  # fewer clips at once
    assert teacher[1]["hours"] == pytest.approx(8 * teacher[8]["hours"])
    assert found["distil"].devices[1]["hours"] is None  # nobody knows how many clips there will be
    plain = forecast(recipe.load("recipes/paper_b_en_de.yaml"), QWEN2_AUDIO_7B, "cuda")
    assert plain["finetune"].devices is None
    assert (
        plain["finetune"].memory
        == forecast(recipe.load("recipes/paper_b_en_de.yaml", ["resources.tflops=1"]), QWEN2_AUDIO_7B, "cuda")[
            "finetune"
        ].memory
    )

    words = ["plan", "paper_b_en_de", "--config", str(config), "--predict-for", "cuda", f"out={tmp_path}", "device=cpu"]
    assert cli.main([*words, *changed, "distil.batch_size=16", "qlora.batch_size=16"]) == 0
    told = capsys.readouterr().out
    assert "each device takes" in told
    assert "refused: resources.devices: 4, but this machine has 2 CPU cores." in told
    assert cli.main(words) == 0
    assert "each device takes" not in capsys.readouterr().out
