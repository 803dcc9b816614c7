"""The Python API: ten lazy names that do what the command line does, on the models of a finished run."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import sordino
from benchmarks.longform import make_talk
from sordino import api
from sordino.config import recipe as recipes
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.errors import ArtifactError, DataError, FamilyError, RecipeError, UsageError
from sordino.inference.model import Model
from sordino.measure.audit import audit
from sordino.pruning.ranking import Ranking
from tests.stages.runs import Made, contents
from tests.tiny import clip

ROOT = Path(__file__).parents[1]
TOKENS = {"max_new_tokens": 5}


@pytest.fixture(scope="module")
def teacher(made: Made) -> Model:
    return sordino.load(made.finished / "20-teacher", device="cpu")


@pytest.fixture(scope="module")
def select(made: Made) -> list[Clip]:
    return manifest.read(made.finished / "10-data" / "select.jsonl")[:3]


def test_the_names_are_few_and_lazy() -> None:
    code = (
        "import sys, sordino; names = dir(sordino); print(len(sordino.__all__), 'torch' in sys.modules);"
        "[getattr(sordino, name) for name in names];"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["10 False", "[]"]
    assert sorted(sordino.__all__) == sordino.__all__ == api.__all__
    with pytest.raises(AttributeError, match="module 'sordino' has no attribute 'lode'"):
        sordino.lode  # type: ignore[attr-defined]  # noqa: B018
    assert (Path(sordino.__file__).parent / "py.typed").is_file()


def test_every_function_says_what_it_takes_gives_and_refuses() -> None:
    for name in set(sordino.__all__) - {"Recipe"}:
        text = getattr(sordino, name).__doc__
        assert re.search(r"Args:\n.*Returns:\n.*Raises:\n", text, re.DOTALL), name


def test_a_loaded_model_knows_how_it_is_asked(made: Made, teacher: Model) -> None:
    assert (teacher.card.source, teacher.card.target) == ("en", "de")
    assert "qwen2_audio, 6 decoder layers, 3 encoder layers, English to German, float32" in repr(teacher)
    base = sordino.load(str(made.model), to="German", device="cpu", dtype="bfloat16")
    assert (base.card.source, base.card.target) == ("en", "German")
    assert str(base.speech.dtype) == "torch.bfloat16"
    with pytest.raises(FamilyError, match="there is no model directory"):
        sordino.load(made.root / "gone")
    with pytest.raises(RecipeError, match="device: 'warp' cannot be used here"):
        sordino.load(made.model, device="warp")


def test_audio_of_every_kind_is_translated_alike(
    made: Made, teacher: Model, select: list[Clip], tmp_path: Path
) -> None:
    one = select[0]
    wave, _ = soundfile.read(one.audio, dtype="float32")
    soundfile.write(tmp_path / "copy.wav", np.stack([wave, wave], axis=1), 16_000, subtype="FLOAT")
    expected = sordino.translate(teacher, one, **TOKENS)
    assert (expected.id, expected.tokens > 0, expected.seconds > 0) == (one.id, True, True)
    for audio in (one.audio, tmp_path / "copy.wav", wave, np.stack([wave, wave], axis=1)):
        assert sordino.translate(teacher, audio, rate=16_000, **TOKENS).text == expected.text
    several = sordino.translate(teacher, [select[1], wave, Path(one.audio)], rate=16_000, batch_size=2, **TOKENS)
    assert [h.id for h in several] == [select[1].id, "1", Path(one.audio).stem]
    assert [h.text for h in several[1:]] == [expected.text] * 2
    assert sordino.translate(teacher, [], **TOKENS) == []


def test_clips_bring_their_languages_where_the_model_knows_none(made: Made, select: list[Clip]) -> None:
    base = sordino.load(made.model, device="cpu")
    assert base.card.target is None
    assert sordino.encode(base, select)[0].prompt == sordino.encode(base, select, to="German")[0].prompt
    assert "Chinese" in sordino.encode(base, select, to="zh")[0].prompt
    with pytest.raises(UsageError, match=r"no target language is known for this model\. Say which"):
        sordino.translate(base, select[0].audio)


def test_audio_that_cannot_be_used(teacher: Model, select: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(UsageError, match=r"samples need their rate\. Say which, in Hz"):
        sordino.translate(teacher, clip(0, 0.5))
    with pytest.raises(DataError) as caught:
        sordino.translate(teacher, [tmp_path / "text.wav", clip(0, 5.0), select[0], tmp_path / "gone.wav"], rate=16_000)
    message = str(caught.value)
    assert "text.wav cannot be read as audio" in message
    assert "audio 1: the clip is 5.00 s long, 4 s is the limit" in message
    assert "gone.wav does not exist" in message
    with pytest.raises(DataError, match="and 20 more"):
        sordino.translate(teacher, [0.5] * 30, rate=16_000)


def test_a_file_beyond_the_window_is_one_text(made: Made, teacher: Model, tmp_path: Path) -> None:
    talk = make_talk(tmp_path / "talk", 12)
    one = sordino.translate(teacher, talk, **TOKENS)
    assert one.id == "talk"
    chunks, single = sordino.translate(teacher, [talk, made.corpus / "clip00.flac"], **TOKENS)
    assert chunks.text == one.text
    assert single.tokens <= 5 < one.tokens


def test_encoding(teacher: Model, select: list[Clip]) -> None:
    of_clips = sordino.encode(teacher, select)
    wave, rate = soundfile.read(select[0].audio, dtype="float32")
    (of_samples,) = sordino.encode(teacher, [wave], rate=rate)
    assert [h.clip.id for h in of_clips] == [c.id for c in select]
    assert of_samples.states.shape[1:] == (64,)
    assert of_samples.states.equal(of_clips[0].states)
    assert of_samples.ids == of_clips[0].ids


def test_layers_are_ranked_as_the_stage_ranks_them(made: Made, teacher: Model, select: list[Clip]) -> None:
    record = json.loads((made.finished / "30-ranking" / "ranking.json").read_text())
    seen: list[tuple[str, int, int]] = []
    ranking = sordino.rank_layers(
        teacher, select, remove=2, max_new_tokens=4, progress=lambda *event: seen.append(event)
    )
    assert json.loads(json.dumps(ranking.to_json())) == record
    assert list(map(str, ranking)) == record["order"]
    assert ("ranking layers by chrf++", seen[-1][2], seen[-1][2]) == seen[-1]
    assert len(teacher.speech.layers("decoder")) == 6


def test_clips_that_cannot_be_ranked_by(made: Made, teacher: Model, select: list[Clip]) -> None:
    chinese = dataclasses.replace(select[0], target_lang="zh")
    blank = dataclasses.replace(select[0], target_text=" ")
    for clips, error, message in (
        ([], UsageError, "there are no clips"),
        ([*select, chinese], UsageError, "clips of de, zh cannot be ranked together"),
        ([*select, blank], DataError, "1 clips have no target_text"),
    ):
        with pytest.raises(error, match=message):
            sordino.rank_layers(teacher, clips, remove=1)
    with pytest.raises(RecipeError, match="there is no criterion 'blue'"):
        sordino.rank_layers(teacher, select, remove=1, criterion="blue")
    with pytest.raises(RecipeError, match="5 layers, but only 4 are candidates"):
        sordino.rank_layers(teacher, select, remove=5, criterion="influence")


def test_pruning_writes_what_the_stage_writes(made: Made, teacher: Model, tmp_path: Path) -> None:
    small = sordino.prune(teacher, Ranking.read(made.finished / "30-ranking" / "ranking.json"), tmp_path / "small")
    there = contents(made.finished / "40-pruned")
    written = contents(tmp_path / "small")
    assert b"how it was made is not recorded" in written.pop("README.md")
    assert written == {n: b for n, b in there.items() if n not in ("stage.json", "kept.json")}
    assert (small.speech.path, small.removed) == (str(tmp_path / "small"), ())
    assert len(teacher.speech.layers("decoder")) == 6
    audio = made.corpus / "clip00.flac"
    again = sordino.load(tmp_path / "small", device="cpu")
    assert again.card == teacher.card
    assert sordino.translate(small, audio, **TOKENS).text == sordino.translate(again, audio, **TOKENS).text


def test_pruning_in_memory_goes_on_by_the_layers_that_are_left(made: Made, teacher: Model, tmp_path: Path) -> None:
    once = sordino.prune(teacher, ["decoder.1", "encoder.0"])
    twice = sordino.prune(once, [1, "encoder.1"])  # which are 2 and encoder.2 of the teacher
    assert [str(layer) for layer in twice.removed] == ["decoder.1", "encoder.0", "decoder.2", "encoder.2"]
    assert [len(m.speech.layers("decoder")) for m in (teacher, once, twice)] == [6, 5, 4]
    straight = sordino.prune(teacher, ["decoder.1", "decoder.2", "encoder.0", "encoder.2"], tmp_path / "straight")
    sordino.export(twice, tmp_path / "twice", format="bf16")
    assert contents(tmp_path / "twice") == contents(tmp_path / "straight")
    weight = twice.speech.layers("decoder")[1].self_attn.q_proj.weight
    assert weight is teacher.speech.layers("decoder")[3].self_attn.q_proj.weight, "shared, not copied"
    texts = [sordino.translate(m, made.corpus / "clip01.flac", **TOKENS).text for m in (straight, twice)]
    assert texts[0] == texts[1]
    with pytest.raises(RecipeError, match="decoder layer 4 is out of range: this model has decoder layers 0 to 3"):
        sordino.prune(twice, [4])


@pytest.mark.parametrize("name", ["bf16", "nf4", "w4a16"])
def test_exports_are_those_of_the_run(made: Made, tmp_path: Path, name: str) -> None:
    assert sordino.export(made.finished / "63-trimmed", tmp_path / "out", format=name) == tmp_path / "out"
    there = contents(made.finished / "70-export" / name)
    written = contents(tmp_path / "out")
    assert f"# A model in {name}\n".encode() in (card := written.pop("README.md"))
    assert b"Layer pruning: 2 layers removed" in card
    assert written == {file: data for file, data in there.items() if file not in ("audit.json", "README.md")}


def test_a_model_pruned_in_memory_is_exported_as_it_is(teacher: Model, tmp_path: Path) -> None:
    small = sordino.prune(teacher, [2], tmp_path / "small")
    sordino.export(small, tmp_path / "straight")
    sordino.export(sordino.prune(teacher, [2]), tmp_path / "memory")
    assert contents(tmp_path / "memory") == contents(tmp_path / "straight")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory", "small", "straight"], "nothing is left beside"


def test_exports_that_are_refused_leave_nothing(made: Made, teacher: Model, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ArtifactError, match="there exists"):
        sordino.export(teacher, tmp_path / "there")
    with pytest.raises(UsageError, match=r"there is no format 'nf5'\. Did you mean 'nf4'\?"):
        sordino.export(teacher, tmp_path / "out", format="nf5")
    with pytest.raises(UsageError, match="format mixed is made for the clips of a run"):
        sordino.export(teacher, tmp_path / "out", format="mixed")
    with pytest.raises(FamilyError, match="is quantized already"):
        sordino.export(made.finished / "70-export" / "nf4", tmp_path / "out")
    with pytest.raises(FamilyError, match=r"holds no config\.json"):
        sordino.export(made.finished / "61-adapter", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_weights_that_were_trained_in_memory_are_not_lost(made: Made, tmp_path: Path) -> None:
    """The files that it would be written from do not know of them."""
    import torch

    model = sordino.load(made.finished / "20-teacher", device="cpu")
    small = sordino.prune(model, [2])
    weight = small.speech.layers("decoder")[0].self_attn.q_proj.weight
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()
    for changed in (small, model):
        with pytest.raises(ArtifactError, match="were changed in memory"):
            sordino.export(changed, tmp_path / "out")
        with pytest.raises(ArtifactError, match="were changed in memory"):
            sordino.prune(changed, [1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_scores(made: Made, select: list[Clip]) -> None:
    texts = ["Der Regen ist kalt.", "Der Zug ist spät.", "Ja."]
    references = [c.target_text or "" for c in select]
    by_text = sordino.score(texts, references, "German")
    assert list(by_text) == ["bleu", "chrf", "chrf++"]
    assert sordino.score(texts, select, "de") == by_text
    assert sordino.score(references, select, "de", metrics=["chrF"])["chrf"].value == pytest.approx(100)
    with pytest.raises(DataError, match="2 translations cannot be scored against 3 references"):
        sordino.score(texts[:2], select, "de")
    with pytest.raises(RecipeError, match="Did you mean 'bleu'"):
        sordino.score(texts, select, "de", metrics=["blue"])


def test_inspecting(made: Made) -> None:
    path = made.finished / "70-export" / "nf4"
    assert sordino.inspect(path) == audit(path)
    with pytest.raises(ArtifactError, match="there is no model"):
        sordino.inspect(made.root / "gone")


def test_a_run(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made.copied(tmp_path)
    done = sordino.run(file)
    assert (done.directory, done.ran) == (tmp_path / "runs" / "run", ())
    assert done.scores and set(done.scores) >= {"base", "teacher", "student", "nf4"}
    assert set(done.scores["teacher"]) == {"bleu", "chrf", "chrf++"}
    again = sordino.run(file, evaluate={"bootstrap": 5, "metrics": ["chrf"]}, report=None)
    assert again.ran == ("evaluate",)
    assert again.scores and set(again.scores["teacher"]) == {"chrf"}
    assert capsys.readouterr().err == "", "nobody asked to see the progress"
    labels: list[str] = []
    assert sordino.run(recipes.load(file), report=None, progress=lambda label, *_: labels.append(label)).ran == (
        "evaluate",
    )
    assert "testing against the teacher" in labels
    with pytest.raises(RecipeError, match=r"finetune\.epoch' \(did you mean 'epochs'\?\)"):
        sordino.run(file, finetune={"epoch": 3})


def test_a_recipe_made_by_hand_is_checked() -> None:
    with pytest.raises(RecipeError, match=r"data\.path: missing"):
        sordino.run(sordino.Recipe(model="demo/base"))


def test_progress_of_everything_that_takes_long(
    teacher: Model, select: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[tuple[Any, ...]] = []

    def listen(*event: Any) -> None:
        events.append(event)

    sordino.translate(teacher, select, progress=listen, **TOKENS)
    assert events == [("translating", 0, 3), ("translating", 3, 3)]
    del events[:]
    sordino.encode(teacher, select, progress=listen)
    assert events == [("encoding audio", done, 3) for done in range(4)]
    del events[:]
    sordino.export(teacher, tmp_path / "out", format="bf16", progress=listen)
    label, done, total = events[-1]
    assert (label, done) == ("bf16", total)
    sordino.prune(teacher, [1], tmp_path / "pruned")
    assert capsys.readouterr() == ("", "")
