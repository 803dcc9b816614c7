"""Commands that take a recipe: one clear message and exit code 2 for every mistake."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sordino.runtime import files
from tests.data import sounds
from tests.stages.runs import Made, answer, contents, jsonl, recipe_file, refusal, run, stage_json, write_corpus
from tests.tiny import clip

Capsys = pytest.CaptureFixture[str]
GOOD = ("train",) * 3 + ("select", "dev", "test")


def no_file(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])


def no_audio(file: Path) -> None:
    file.write_text("this is a text file\n" * 50)


def not_numbers(file: Path) -> None:
    samples = clip(0, 0.5)
    samples[100] = np.nan
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")


def silent(file: Path) -> None:
    soundfile.write(file, np.zeros(8000, dtype=np.float32), 16_000)


def short(file: Path) -> None:
    soundfile.write(file, clip(0, 0.06), 16_000)


def long(file: Path) -> None:
    soundfile.write(file, clip(0, 31.0), 16_000)


def beyond_the_window(file: Path) -> None:
    soundfile.write(file, clip(0, 5.0), 16_000)  # the pico model hears 4 s


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (no_file, "is not a file in the folder"),
    (empty, "is empty (0 bytes)"),
    (truncated, "truncated or damaged"),
    (no_audio, "cannot be read as audio"),
    (not_numbers, "are NaN or infinite"),
    (silent, "the clip is silent"),
    (short, "0.1 s is the minimum"),
    (long, "4 s is the limit"),
    (beyond_the_window, "5.00 s long, 4 s is the limit"),
]


@pytest.mark.parametrize(("spoil", "said"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_clip_that_cannot_be_used(
    made: Made, tmp_path: Path, capsys: Capsys, spoil: Callable[[Path], None], said: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", GOOD)
    spoil(corpus / "clip01.flac")
    file = recipe_file(tmp_path, made.model, corpus)
    message = refusal(capsys, "prepare", file)
    assert said in message
    assert "clip01" in message
    assert "clip02" not in message
    assert "--skip-bad" in message
    assert not (tmp_path / "runs/run/10-data").exists()
    run("prepare", file, "--skip-bad")
    there = tmp_path / "runs/run/10-data"
    skipped = jsonl(there / "skipped.jsonl")
    assert [row["id"].removesuffix(".flac") for row in skipped] == ["clip01"]
    assert said in skipped[0]["problem"]
    assert stage_json(there)["skipped"] == 1
    assert [row["id"] for row in jsonl(there / "train.jsonl")] == ["clip00", "clip02"]


def change_row(corpus: Path, row: int, column: str, value: str) -> None:
    table = corpus / "texts.tsv"
    lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    lines[row + 1][lines[0].index(column)] = value
    table.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("row", "column", "value", "said"),
    [
        (1, "text_de", "", "the target text (text_de) is empty"),
        (1, "audio", "clip00.flac", "is taken by an earlier row"),
        (3, "group", "train-0", "Group 'train-0' stands in"),
        (1, "split", "training", "split 'training' is none of"),
    ],
)
def test_a_row_that_cannot_be_used(
    made: Made, tmp_path: Path, capsys: Capsys, row: int, column: str, value: str, said: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", GOOD)
    change_row(corpus, row, column, value)
    assert said in refusal(capsys, "prepare", recipe_file(tmp_path, made.model, corpus))


def test_every_bad_clip_is_named_at_once(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    corpus = write_corpus(tmp_path / "corpus", GOOD)
    for i, spoil in enumerate((empty, silent, no_audio)):
        spoil(corpus / f"clip0{i}.flac")
    change_row(corpus, 3, "text_de", "")
    message = refusal(capsys, "prepare", recipe_file(tmp_path, made.model, corpus))
    assert "4 rows of the corpus cannot be used" in message
    assert all(f"clip0{i}" in message for i in range(4))


def test_eight_kilohertz_stereo_is_fine(made: Made, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", GOOD)
    for file in corpus.glob("*.flac"):
        samples = sounds.tone(0.5, 8000)
        soundfile.write(file, np.stack([samples, 0.5 * samples], axis=1), 8000)
    changes = {"finetune": {"max_steps": 1}}
    file = recipe_file(tmp_path, made.model, corpus, changes)
    run("prepare", file)
    run("finetune", file)
    assert {row["seconds"] for row in jsonl(tmp_path / "runs/run/10-data/train.jsonl")} == {0.5}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune.epoch=3"], "unknown key 'finetune.epoch' (did you mean 'epochs'?)"),
        (["data.corpus=foldr"], "There is no corpus 'foldr'. Did you mean 'folder'?"),
        (["data.path=nowhere"], "nowhere is not a directory"),
        (["model=nowhere"], "there is no model directory nowhere"),
        (["device=warp"], "device: 'warp' cannot be used here"),
        (["evaluate.metrics=[blue]"], "there is no metric 'blue'. Did you mean 'bleu'?"),
        (["rank.method=explicit", "rank.layers=[tower.3]"], "'tower.3' names no layer"),
        (["translate.systems=[studnt]"], "translate.systems: this recipe makes no 'studnt'"),
        (["data.splits.select=50", "data.path={segments}"], "cannot be dealt into"),
    ],
)
def test_a_mistake_in_the_recipe(made: Made, tmp_path: Path, capsys: Capsys, words: list[str], said: str) -> None:
    if "{segments}" in words[-1]:
        words = [words[0], f"data.path={write_corpus(tmp_path / 'segments', ('',) * 6)}"]
    file = made.recipe(tmp_path)
    assert said in refusal(capsys, "run", file, *words)
    assert not list(tmp_path.glob("runs/run/*/stage.json"))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("[6]", "decoder layer 6 is out of range: this model has decoder layers 0 to 5"),
        ("[1, encoder.3]", "encoder layer 3 is out of range: this model has encoder layers 0 to 2"),
        ("[1, decoder.1]", "a decoder layer is named twice"),
        ("[encoder.0, encoder.1, encoder.2]", "no encoder layer would be left"),
    ],
)
def test_layers_that_the_model_lacks_are_refused_first(
    made: Made, tmp_path: Path, capsys: Capsys, layers: str, said: str
) -> None:
    message = refusal(capsys, "plan", made.recipe(tmp_path), "rank.method=explicit", f"rank.layers={layers}")
    assert said in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate.metrics=[chrf, comet]"], "evaluate.metrics: comet needs source texts, and 1 of 1 test clips"),
        (["pseudolabel.filter.min_comet=0.5"], "pseudolabel.filter.comet: comet needs source texts, and 1 of 3 train"),
    ],
)
def test_comet_without_source_texts_is_refused_first(
    made: Made, tmp_path: Path, capsys: Capsys, words: list[str], said: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", GOOD)
    for row in (0, 5):
        change_row(corpus, row, "text_en", "")
    file = recipe_file(tmp_path, made.model, corpus)
    message = refusal(capsys, "prepare", file, *words)
    assert said in message
    assert not (tmp_path / "runs/run/10-data").exists()
    run("prepare", file)
    assert said in refusal(capsys, "finetune", file, *words)  # also where the clips are there already
    assert not (tmp_path / "runs/run/20-teacher").exists()


def test_a_comet_checkpoint_that_is_not_there_is_refused_first(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.recipe(tmp_path)
    (tmp_path / "empty").mkdir()
    place = tmp_path / "empty"
    assert "hparams.yaml is missing" in refusal(capsys, "plan", file, f"evaluate.metrics=['comet:{place}']")
    assert "no COMET checkpoint" in refusal(capsys, "plan", file, "evaluate.metrics=['comet:./gone']")
    words = ["pseudolabel.filter.min_comet=0.5", f"pseudolabel.filter.comet='comet:{place}'"]
    assert "hparams.yaml is missing" in refusal(capsys, "plan", file, *words)
    words[1] = "pseudolabel.filter.comet=chrf"
    assert "'chrf' is no COMET" in refusal(capsys, "plan", file, *words)


def test_the_speeds_are_of_the_device(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    """A run that was finished on another kind of device translates again; nothing else does."""
    file = made.copied(tmp_path)
    stage = tmp_path / "runs/run/80-outputs/stage.json"
    record = json.loads(stage.read_text())
    assert record["section"]["device"] == "cpu"
    record["section"]["device"] = "cuda"
    stage.write_text(json.dumps(record))
    plan = {line["stage"]: line["why"] for line in answer(capsys, "plan", file)["plan"] if line["runs"]}
    assert plan["translate"] == "settings changed: device"
    assert set(plan) == {"translate", "evaluate", "report"}


def no_memory(kind: str) -> Exception:
    import torch

    if kind == "torch":
        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    if kind == "allocator":
        return RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
    return MemoryError()


@pytest.mark.parametrize("kind", ["torch", "allocator", "python"])
def test_too_little_memory_says_what_to_lower(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from sordino.training import trainer

    file = made.copied(tmp_path, stages=["10-data"])
    accumulate, steps = trainer._accumulate, []

    def short(*args: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise no_memory(kind)
        return accumulate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_accumulate", short)
        message = refusal(capsys, "finetune", file)
    assert "finetune: the memory of cpu is not enough" in message
    assert "raise finetune.accumulate (now 1, batch_size 4)" in message
    assert "finetune.gradient_checkpointing=true" in message
    points = tmp_path / "runs/run/20-teacher.partial/.state/train"
    assert [p.name for p in points.iterdir()] == ["step-00000002"]
    run("finetune", file, "finetune.accumulate=4")  # goes on where it was
    rows = jsonl(tmp_path / "runs/run/20-teacher/log.jsonl")
    straight = jsonl(made.finished / "20-teacher/log.jsonl")
    assert rows[:2] == straight[:2]
    assert rows[2]["loss"] == pytest.approx(straight[2]["loss"], rel=1e-4)


def test_too_little_memory_for_files_and_batches(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sordino.inference import translation
    from sordino.pipeline import pseudolabels

    def short(*_: object, **__: object) -> None:
        raise no_memory("torch")

    monkeypatch.setattr(pseudolabels, "generate", short)
    file = made.copied(tmp_path, stages=["10-data", "20-teacher"])
    assert "lower pseudolabel.batch_size (now 3)" in refusal(capsys, "pseudolabel", file)
    monkeypatch.setattr(translation, "translate_files", short)
    message = refusal(capsys, "translate", made.model, made.corpus / "clip00.flac", "--to", "de")
    assert "not enough memory. Lower --batch-size" in message


def test_layers_out_of_range_leave_what_is_finished(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.copied(tmp_path, stages=["10-data", "20-teacher", "30-ranking"])
    before = contents(tmp_path / "runs")
    message = refusal(capsys, "rank", file, "rank.method=explicit", "rank.layers=[6]")
    assert "decoder layer 6 is out of range: this model has decoder layers 0 to 5" in message
    assert "prune.remove: 3, but rank finds 2 removals" in refusal(capsys, "prune", file, "prune.remove=3")
    after = contents(tmp_path / "runs")
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name not in before and ".partial" not in name and "cache" not in name]


def test_a_model_that_cannot_be_used(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    def spoiled(name: str) -> Path:
        return Path(shutil.copytree(made.model, tmp_path / name))

    file = made.copied(tmp_path, stages=["10-data"])
    unknown = spoiled("unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert "models of type 'bert' are not supported" in refusal(capsys, "run", file, f"model={unknown}")
    damaged = spoiled("damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:5000])
    assert f"{damaged / 'model.safetensors'} is truncated or damaged" in refusal(
        capsys, "run", file, f"model={damaged}"
    )
    (damaged / "model.safetensors").unlink()
    assert f"{damaged} holds neither model.safetensors nor" in refusal(capsys, "run", file, f"model={damaged}")
    mute = spoiled("mute")
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer.json"):
        (mute / name).unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "runs/run/10-data")
    assert f"the processor in {mute} does not load" in refusal(capsys, "run", file, f"model={mute}")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk(made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file = made.copied(tmp_path, {"rank": {"method": "middle"}}, ["10-data", "20-teacher"])
    before = contents(tmp_path / "runs")

    def full(path: Path, _: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", full)
        message = refusal(capsys, "rank", file)
    told = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "is read-only"}
    assert told[number] in message
    assert "30-ranking.partial" in message
    assert {name: data for name, data in contents(tmp_path / "runs").items() if name in before} == before
    run("rank", file)
    assert stage_json(tmp_path / "runs/run/30-ranking")["complete"] is True


def test_a_disk_that_fills_while_weights_are_written(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors wraps the error; the training is not lost."""
    from safetensors import SafetensorError

    from sordino.models import saving

    file = made.copied(tmp_path, {"finetune": {"max_steps": 3}}, ["10-data"])

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", full)
        message = refusal(capsys, "finetune", file)
    assert "20-teacher.partial" in message
    assert "it goes on from what is kept" in message
    points = list(tmp_path.glob("runs/run/20-teacher.partial/.state/train/step-*"))
    assert [p.name for p in points] == ["step-00000002"]
    run("finetune", file)
    for name in ("model.safetensors", "log.jsonl"):
        there = tmp_path / "runs/run/20-teacher" / name
        assert there.read_bytes() == (made.finished / "20-teacher" / name).read_bytes()


def test_stages_by_name(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.recipe(tmp_path, {"export": None})
    assert "this recipe has no export section. Add `export:` to it." in refusal(capsys, "export", file)
    assert "10-data is not finished, and finetune needs it" in refusal(capsys, "finetune", file)


def test_text_files_are_not_evaluated_as_recipes(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "hyp.txt").write_text("Ja.\n")
    expected = "evaluate takes a recipe. For text files: sordino score HYPOTHESES --references FILE"
    assert expected in refusal(capsys, "evaluate", tmp_path / "hyp.txt")
    assert expected in refusal(
        capsys, "evaluate", tmp_path / "gone.txt", "--references", tmp_path / "hyp.txt", "--to", "de"
    )
    assert expected in refusal(capsys, "evaluate", made.recipe(tmp_path), "--references=ref.txt")


@pytest.mark.parametrize(
    ("command", "option", "setting"),
    [
        ("plan", ["--device", "cuda"], "device=cuda"),
        ("run", ["--to=zh"], "target=zh"),
        ("translate-test", ["--max-new-tokens", "3"], "translate.max_new_tokens=3"),
        ("distil", ["--epochs", "2"], "distil.epochs=2"),
        ("finetune", ["--gradient-checkpointing"], "finetune.gradient_checkpointing=..."),
        ("run", ["--metrics", "chrf"], "evaluate.metrics=chrf"),
    ],
)
def test_an_option_that_is_a_setting(
    made: Made, tmp_path: Path, capsys: Capsys, command: str, option: list[str], setting: str
) -> None:
    message = refusal(capsys, command, made.recipe(tmp_path), *option)
    name = option[0].partition("=")[0]
    assert f"there is no option {name}. Settings of a recipe are written key=value: {setting}\n" in message


def test_an_option_that_is_nothing(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.recipe(tmp_path)
    assert "there is no option --skip-bda. Did you mean --skip-bad?" in refusal(capsys, "run", file, "--skip-bda")
    message = refusal(capsys, "run", file, "--batch-size", "4")  # several sections have it
    assert "there is no option --batch-size. `sordino run --help` shows how." in message


def test_settings_of_a_stage_and_of_the_recipe(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.copied(tmp_path, {"translate": {"systems": ["pruned"], "max_new_tokens": 6}})
    run("translate-test", file, "translate.max_new_tokens=3", "translate.batch_size=2", "dtype=bfloat16")
    section = stage_json(tmp_path / "runs/run/80-outputs")["section"]
    assert (section["max_new_tokens"], section["batch_size"], section["dtype"]) == (3, 2, "bfloat16")
    assert stage_json(tmp_path / "runs/run/80-outputs")["stage"] == "translate"
    assert "device: 'warp' cannot be used" in refusal(capsys, "translate-test", file, "device=warp")
