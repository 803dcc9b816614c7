"""Commands that take a model: what is missing, where options may stand, what works for a family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino import cli
from tests.data import sounds
from tests.stages.runs import Made, answer, refusal, run

Capsys = pytest.CaptureFixture[str]


def test_translating_without_saying_what(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    clip00 = made.corpus / "clip00.flac"
    assert "no target language is known for this model" in refusal(capsys, "translate", made.model, clip00)
    assert "no audio files" in refusal(capsys, "translate", made.model, "--to", "de")
    assert "there is no model directory" in refusal(capsys, "translate", tmp_path / "m", clip00, "--to", "de")
    message = refusal(capsys, "translate", made.model, clip00, tmp_path / "gone.wav", "--to", "de")
    assert "gone.wav does not exist" in message
    for option in ("--batch-size", "--max-new-tokens"):
        message = refusal(capsys, "translate", made.model, clip00, "--to", "de", option, "0")
        assert f"argument {option}: must be at least 1, found 0" in message
    assert "there is no recipe" in refusal(capsys, "run", tmp_path / "gone.yaml")
    assert "there is no model" in refusal(capsys, "inspect", tmp_path / "gone")


def test_a_recipe_is_no_model(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    file = made.recipe(tmp_path)
    expected = f"translate takes a model and audio files. For a recipe: sordino translate-test {file}"
    assert expected in refusal(capsys, "translate", file)
    assert expected in refusal(capsys, "translate", "--device", file, "target=zh").replace("--device", "")


def test_files_may_follow_an_option(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    audio = str(sounds.save(tmp_path / "a.wav", sounds.tone(1.0)))
    student = str(made.finished / "60-student")  # its card knows the languages
    rows = answer(capsys, "translate", student, "--max-new-tokens", "3", audio)["hypotheses"]
    assert [row["audio"] for row in rows] == [audio]
    assert "there is no option --colour" in refusal(capsys, "translate", student, audio, "--colour", "red")


def test_several_files_are_lines_with_their_names(made: Made, capsys: Capsys) -> None:
    files = [made.corpus / f"clip0{i}.flac" for i in (2, 0, 1)]
    capsys.readouterr()
    run("translate", made.finished / "60-student", *files, "--max-new-tokens", "3")
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == list(map(str, files))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "MODEL", "--decoder-layers", "3"], "not of a model's files. Use --config"),
        (["inspect", "MODEL", "--vocabulary", "3"], "not of a model's files. Use --config"),
        (["inspect"], "give a model directory, a .safetensors file, or --config config.json"),
    ],
)
def test_options_that_would_not_be_used(made: Made, capsys: Capsys, words: list[str], message: str) -> None:
    assert message in refusal(capsys, *[str(made.model) if word == "MODEL" else word for word in words])


def test_families_say_what_works(capsys: Capsys) -> None:
    rows = answer(capsys, "families")["families"]
    assert rows["qwen2_audio"] == {
        "class": "Qwen2AudioForConditionalGeneration",
        "prune": ["decoder", "encoder"],
        "fast_ranking": True,
        "system_prompt": True,
        "export": ["bf16", "nf4", "w4a16", "w4a16-gptq", "mixed", "gguf-q8_0", "gguf-q4_k_m", "gguf-q4_0"],
        "sizes": True,
    }
    assert rows["voxtral"]["system_prompt"] is False
    run("families")
    out = capsys.readouterr().out
    assert "what works" in out or "rank and prune" in out
    assert all(name in out for name in rows)


def test_a_row_of_json_is_plain(made: Made, capsys: Capsys) -> None:
    assert cli.main(["inspect", str(made.model), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["model"] == str(made.model)
