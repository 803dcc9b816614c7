"""The command line: one clear message and exit code 2 for every mistake, one JSON object for every answer."""

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

from sordino import cli
from sordino.pipeline import artifact
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
    (long, "30 s is the limit"),
    (beyond_the_window, "5.0 s, but the model hears 4 s at once"),
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
    loss, steps = trainer.batch_loss, []

    def short(*args: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise no_memory(kind)
        return loss(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "batch_loss", short)
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
    (tmp_path / "runs/run/10-data/stage.json").unlink()
    assert f"the processor in {mute} does not load" in refusal(capsys, "run", file, f"model={mute}")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk(made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file = made.copied(tmp_path, {"rank": {"method": "middle"}}, ["10-data", "20-teacher"])
    before = contents(tmp_path / "runs")

    def full(path: Path, _: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "write_text", full)
        message = refusal(capsys, "rank", file)
    expected = os.strerror(errno.EROFS) if number == errno.EROFS else "the disk is full while writing"
    assert expected in message
    assert {name: data for name, data in contents(tmp_path / "runs").items() if name in before} == before
    run("rank", file)
    assert stage_json(tmp_path / "runs/run/30-ranking")["complete"] is True


def test_a_disk_that_fills_while_weights_are_written(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors wraps the error; the training is not lost."""
    from safetensors import SafetensorError

    from sordino.models import registry

    file = made.copied(tmp_path, {"finetune": {"max_steps": 3}}, ["10-data"])

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "save", full)
        message = refusal(capsys, "finetune", file)
    assert "20-teacher.partial" in message
    assert "it goes on from there" in message
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
    with pytest.raises(SystemExit) as ended:
        cli.main(["finetun", str(file)])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0


def test_a_bug_of_ours_is_not_hidden(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sordino.pipeline import runner

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(runner, "plan", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan", str(made.recipe(tmp_path))])


def test_an_interruption_says_how_to_go_on(made: Made, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from sordino.pipeline import runner

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "plan", interrupted)
    assert cli.main(["plan", str(made.recipe(made.root))]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def commands(made: Made, directory: Path) -> dict[str, list[Any]]:
    """Every command, as it would be called on a finished run; a sweep on a copy, since it adds to it."""
    hypotheses, references = directory / "h.txt", directory / "r.txt"
    hypotheses.write_text("Der Zug ist spät.\nJa.\n")
    references.write_text("Der Zug ist zu spät.\nJa.\n")
    recipe = made.recipe(made.root)
    found: dict[str, list[Any]] = {name: [recipe] for name in cli.COMMANDS if name not in ("inspect", "families")}
    test_set = directory / "tst"
    test_set.mkdir()
    (test_set / "one.flac").write_bytes((made.corpus / "clip00.flac").read_bytes())
    model = made.finished / "70-export" / "nf4"
    asked = ["--team", "KIT", "--to", "German", "--max-new-tokens", 3]
    found["submit"] = [model, test_set, *asked, "--out", directory / "submissions"]
    found["sweep"] += ["sweep.of=[student]", "sweep.formats=[nf4]", f"out={directory / 'runs'}"]
    found |= {"inspect": [model], "families": [], "settings": ["rank"]}
    clips = [made.corpus / "clip03.flac", made.corpus / "clip00.flac"]
    found["translate MODEL"] = [model, *clips, "--to", "German", "--max-new-tokens", 3]
    found["evaluate TEXTS"] = [hypotheses, "--references", references, "--to", "de"]
    return found


@pytest.mark.parametrize("name", [*cli.COMMANDS, "translate MODEL", "evaluate TEXTS"])
def test_json_is_the_last_line_of_every_command(made: Made, tmp_path: Path, capsys: Capsys, name: str) -> None:
    if name == "sweep":
        made.copied(tmp_path)
    _ = made.finished
    found = answer(capsys, name.split(maxsplit=1)[0], *commands(made, tmp_path)[name])
    if name == "translate MODEL":
        rows = found["hypotheses"]
        assert [list(row) for row in rows] == [["id", "audio", "text", "seconds", "tokens"]] * 2
        assert [row["id"] for row in rows] == ["clip03", "clip00"]
    elif name == "evaluate TEXTS":
        assert [score["name"] for score in found["scores"]]
        assert all(0 < score["value"] < 100 and score["signature"] for score in found["scores"])
    elif name == "inspect":
        assert found["size"]["weights_bytes"] > 0
    elif name == "families":
        assert set(found["families"]) >= {"qwen2_audio", "voxtral"}
    elif name == "settings":
        assert found["settings"][0]["key"] == "rank.method"
    elif name == "submit":
        assert found["segments"] == {"tst": 1} and Path(found["files"]["tst"]).is_file()
    elif name == "sweep":
        assert found["ran"] == ["sweep"] and found["knee"] and found["points"]
    else:
        assert found["run"] == str(made.finished)
        assert not found.get("ran")


@pytest.mark.parametrize("name", [*cli.COMMANDS, "translate MODEL", "evaluate TEXTS"])
def test_every_command_speaks_to_people_too(made: Made, tmp_path: Path, capsys: Capsys, name: str) -> None:
    if name == "sweep":
        made.copied(tmp_path)
    _ = made.finished
    words = commands(made, tmp_path)[name]
    capsys.readouterr()
    run(name.split(maxsplit=1)[0], *words)
    out, err = capsys.readouterr()
    assert out or err


def test_evaluating_texts_that_do_not_match(tmp_path: Path, capsys: Capsys) -> None:
    one, two, bad = (tmp_path / name for name in ("one.txt", "two.txt", "bad.txt"))
    one.write_text("a\n")
    two.write_text("a\nb\n")
    bad.write_bytes(b"\xff\xfe\n")
    assert "has 1 line" in refusal(capsys, "evaluate", one, "--references", two)
    assert "there is no file" in refusal(capsys, "evaluate", tmp_path / "gone.txt", "--references", two)
    assert "is not UTF-8" in refusal(capsys, "evaluate", bad, "--references", one)
    assert "no references" in refusal(capsys, "evaluate", one)
    assert "there is no metric 'blue'" in refusal(capsys, "evaluate", one, "--references", one, "--metrics", "blue")


def test_translating_without_saying_what(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    clip00 = made.corpus / "clip00.flac"
    assert "no target language" in refusal(capsys, "translate", made.model, clip00)
    assert "no audio files" in refusal(capsys, "translate", made.model, "--to", "de")
    assert "there is no model directory" in refusal(capsys, "translate", tmp_path / "m", clip00, "--to", "de")
    assert "gone.wav does not exist" in refusal(
        capsys, "translate", made.model, clip00, tmp_path / "gone.wav", "--to", "de"
    )
    for option in ("--batch-size", "--max-new-tokens"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["translate", str(made.model), str(clip00), "--to", "de", option, "0"])
        assert ended.value.code == 2
    assert "there is no recipe" in refusal(capsys, "run", tmp_path / "gone.yaml")
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "gone")]) == 2


def test_files_may_follow_an_option(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    audio = str(sounds.save(tmp_path / "a.wav", sounds.tone(1.0)))
    student = str(made.finished / "60-student")
    assert (
        cli.main(["translate", student, "--max-new-tokens", "3", audio, "--json"]) == 0
    )  # its card knows the languages
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["hypotheses"][0]["audio"] == audio
    with pytest.raises(SystemExit) as caught:
        cli.main(["translate", student, audio, "--colour", "red"])
    assert caught.value.code == 2


def test_options_beside_a_recipe_are_its_settings(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.copied(tmp_path, {"translate": {"systems": ["pruned"], "max_new_tokens": 6}})
    run("translate", file, "--max-new-tokens", 3, "--batch-size", 2, "--dtype", "bfloat16", "--device", "cpu")
    section = stage_json(tmp_path / "runs/run/80-outputs")["section"]
    assert (section["max_new_tokens"], section["batch_size"], section["dtype"]) == (3, 2, "bfloat16")
    assert "device: 'warp' cannot be used" in refusal(capsys, "translate", file, "--device", "warp")
    run("evaluate", file, "translate.systems=[pruned]", "--metrics", "chrF,bleu")
    assert stage_json(tmp_path / "runs/run/85-scores")["section"]["metrics"] == ["chrF", "bleu"]
    assert "there is no metric 'blue'" in refusal(capsys, "evaluate", file, "--metrics", "blue")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["translate", "RECIPE", "--to", "zh"], "--to is not used with a recipe. Say target=..."),
        (["translate", "RECIPE", "--from", "fr"], "--from is not used with a recipe. Say source=..."),
        (["evaluate", "RECIPE", "--to", "zh"], "--to is not used with a recipe. Say target=..."),
        (["evaluate", "RECIPE", "--references", "r"], "--references is not used with a recipe. Leave it out"),
        (["evaluate", "RECIPE", "--sources", "s"], "--sources is not used with a recipe. Leave it out"),
        (["inspect", "MODEL", "--decoder-layers", "3"], "not of a model's files. Use --config"),
        (["inspect", "MODEL", "--vocabulary", "3"], "not of a model's files. Use --config"),
    ],
)
def test_options_that_would_not_be_used(
    made: Made, tmp_path: Path, capsys: Capsys, words: list[str], said: str
) -> None:
    places = {"RECIPE": str(made.recipe(tmp_path)), "MODEL": str(made.model)}
    assert said in refusal(capsys, *[places.get(word, word) for word in words])
