"""The tutorial's commands, in its order, with a pico model in place of the demo's and a few made-up clips."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sordino import cli
from sordino.cli.command import Parser
from tests.data import sounds
from tests.stages.runs import Made, run
from tests.tiny import clip

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
CLIPS = 40
UNENDING = ("serve",)  # understood here, not run


def commands() -> list[list[str]]:
    """Words behind every `sordino` of the page's blocks of code, output and comments left out."""
    blocks = re.findall(r"```(?:sh)?\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    asked = [match[1] for line in lines if (match := re.match(r"(?:\$ )?sordino (\w.*)", line))]
    return [shlex.split(line, comments=True) for line in asked]


def write_folder(folder: Path) -> None:
    """What the page's first step asks for, and no more."""
    (folder / "audio").mkdir(parents=True)
    rows = ["audio\ttext_en\ttext_de"]
    for i in range(CLIPS):
        sounds.save(folder / "audio" / f"{i:04}.flac", clip(i, 0.4 + 0.01 * i))
        rows.append(f"audio/{i:04}.flac\tThe train number {i} leaves.\tDer Zug Nummer {i} fährt ab.")
    (folder / "texts.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_its_commands_run_as_they_stand(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data" / "mine")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "base").symlink_to(made.model)
    sounds.save(tmp_path / "recording.wav", clip(99, 1.0))
    asked = commands()
    assert [words[0] for words in asked] == ["init", "run", "translate", "serve", "sweep", "publish"]
    small = {
        "sweep": ["sweep.of=[student]", "sweep.formats=[nf4]", "sweep.remove=[]"],
        "translate": ["--max-new-tokens", "4"],
    }
    printed = {}
    for name, *words in asked:
        if name in UNENDING:
            Parser(name, cli.COMMANDS[name]).parse(words)
            continue
        capsys.readouterr()
        run(name, *words, *small.get(name, []))
        printed[name] = capsys.readouterr().out
    assert f"{CLIPS} clips" in printed["init"] and "wrote mine.yaml" in printed["init"]
    assert "export nf4" in printed["run"]
    assert "nf4" in printed["sweep"]
    assert "model.safetensors" in printed["publish"]
    report = tmp_path / "runs" / "mine-en-de" / "90-report" / "report.html"
    assert report.is_file()


def test_inline_commands_are_understood(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sordino plan mine.yaml` and the like, in the page's sentences."""
    inline = re.findall(r"`sordino (\w[^`]*)`", PAGE.read_text(encoding="utf-8"))
    assert len(inline) >= 3
    for words in map(shlex.split, inline):
        Parser(words[0], cli.COMMANDS[words[0]]).parse(words[1:])
