"""The command line as a whole: help, one JSON object for every answer, mistakes in its words, cheap to start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sordino import cli
from sordino.cli.command import Parser
from sordino.errors import OF_THE_MACHINE
from tests.stages.runs import Made, answer, refusal, run

Capsys = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "soundfile", "sacrebleu", "peft")


# a server goes on until it is stopped; the finished run has no qat, which tests/stages/test_qat.py runs
ENDING = [name for name in cli.COMMANDS if name not in ("serve", "qat")]


def commands(made: Made, directory: Path) -> dict[str, list[Any]]:
    """Every command, as it would be called on a finished run; a sweep on a copy, since it adds to it."""
    hypotheses, references = directory / "h.txt", directory / "r.txt"
    hypotheses.write_text("Der Zug ist spät.\nJa.\n")
    references.write_text("Der Zug ist zu spät.\nJa.\n")
    words: dict[str, list[Any]] = {name: [made.recipe(made.root)] for name in cli.COMMANDS}
    test_set = directory / "tst"
    test_set.mkdir()
    (test_set / "one.flac").write_bytes((made.corpus / "clip00.flac").read_bytes())
    model = made.finished / "70-export" / "nf4"
    asked = ["--team", "KIT", "--to", "German", "--max-new-tokens", 3]
    words["submit"] = [model, test_set, *asked, "--out", directory / "submissions"]
    words["card"] = [model]
    words["publish"] = [model, "my-name/small", "--dry-run"]
    words |= {"try": [], "init": [made.corpus, "--to", "de", "--out", directory / "first.yaml"]}
    words["sweep"] += ["sweep.of=[student]", "sweep.formats=[nf4]", f"out={directory / 'runs'}"]
    words |= {"inspect": [model], "families": [], "settings": ["rank"]}
    clips = [made.corpus / "clip03.flac", made.corpus / "clip00.flac"]
    words["translate"] = [model, *clips, "--to", "German", "--max-new-tokens", 3]
    words["score"] = [hypotheses, "--references", references, "--to", "de"]
    return words


@pytest.mark.parametrize("name", ENDING)
def test_json_is_the_last_line_of_every_command(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(ROOT)  # `try` is of a checkout
    if name == "sweep":
        made.copied(tmp_path)
    _ = made.finished
    result = answer(capsys, name, *commands(made, tmp_path)[name])
    if name == "translate":
        rows = result["hypotheses"]
        assert [list(row) for row in rows] == [["id", "audio", "text", "seconds", "tokens"]] * 2
        assert [row["id"] for row in rows] == ["clip03", "clip00"]
    elif name == "score":
        assert [score["name"] for score in result["scores"]] == ["bleu", "chrf", "chrf++"]
        assert all(0 < score["value"] < 100 and score["signature"] for score in result["scores"])
    elif name == "inspect":
        assert result["size"]["weights_bytes"] > 0
    elif name == "families":
        assert set(result["families"]) >= {"qwen2_audio", "voxtral"}
    elif name == "settings":
        assert result["settings"][0]["key"] == "rank.method"
    elif name == "submit":
        assert result["segments"] == {"tst": 1} and Path(result["files"]["tst"]).is_file()
    elif name == "try":
        assert len(result["clips"]) == 5 and all(row["translation"] for row in result["clips"])
    elif name == "init":
        assert result["clips"] == 20 and Path(result["recipe"]).is_file()
    elif name == "card":
        assert result["scored"] is True and result["card"].startswith("---\n")
    elif name == "publish":
        assert set(result["files"]) >= {"README.md", "config.json", "model.safetensors"}
    elif name == "sweep":
        assert result["ran"] == ["sweep"] and result["knee"] and result["points"]
    else:
        assert result["run"] == str(made.finished)
        assert not result.get("ran")


@pytest.mark.parametrize("name", ENDING)
def test_every_command_speaks_to_people_too(
    made: Made, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(ROOT)
    if name == "sweep":
        made.copied(tmp_path)
    _ = made.finished
    words = commands(made, tmp_path)[name]
    capsys.readouterr()
    run(name, *words)
    out, err = capsys.readouterr()
    assert out or err


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"]])
def test_the_overview_names_every_command_in_its_group(words: list[str], capsys: Capsys) -> None:
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    titles = [f"{title}:" for title in cli.GROUPS]
    lines = out.splitlines()
    assert [line for line in lines if line in titles] == titles
    for title, group in cli.GROUPS.items():
        start = lines.index(f"{title}:") + 1
        assert [line.split()[0] for line in lines[start : start + len(group)]] == list(group)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_has_examples_that_are_understood(name: str, capsys: Capsys) -> None:
    for words in ([name, "--help"], ["help", name]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: sordino {name} ")
    if cli.COMMANDS[name].stage:
        assert re.search(r"^(settings, in the recipe's section|This stage has no settings)", out, re.MULTILINE)
    if "RECIPE" in out:
        assert "RECIPE [key=value ...]" in " ".join(out.split())
    examples = re.findall(rf"^  sordino {name}(.*)$", out, re.MULTILINE)
    assert examples
    for example in examples:
        Parser(name, cli.COMMANDS[name]).parse(example.replace("'", "").split())  # raises where it is wrong


@pytest.mark.parametrize("name", ["version", "--version"])
def test_the_version(name: str, capsys: Capsys) -> None:
    assert cli.main([name]) == 0
    assert re.fullmatch(r"sordino \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetun", "recipe.yaml"], "there is no command finetun. Did you mean finetune? `sordino help` lists"),
        (["help", "finetun"], "there is no command finetun. Did you mean finetune?"),
        (["xyz"], "there is no command xyz. `sordino help` lists the commands."),
        (["--json", "run", "r.yaml"], "there is no option (the command comes first) --json."),
        (["run"], "run: the following arguments are required: RECIPE. `sordino run --help` shows how."),
        (["families", "qwen"], "families: there is no place for qwen."),
        (["plan", "r.yaml", "--predict-for", "tpu"], "plan: argument --predict-for: invalid choice: 'tpu'"),
        (["score", "h.txt", "--reference", "r.txt"], "there is no option --reference. Did you mean --references?"),
    ],
)
def test_words_that_cannot_be_followed_are_one_line(words: list[str], message: str, capsys: Capsys) -> None:
    error = refusal(capsys, *words)
    assert message in error
    assert error.count("\n") == 1


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


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody_reads:
        command = [sys.executable, "-m", "sordino.cli", "families"]
        done = subprocess.run(command, stdout=nobody_reads, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")])
def test_a_signal_says_that_the_same_command_goes_on(
    made: Made, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, name: str
) -> None:
    from sordino.pipeline import runner

    monkeypatch.setattr(runner, "plan", lambda *_: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # nohup may have said otherwise
    try:
        assert cli.main(["plan", str(made.recipe(made.root))]) == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == f"sordino: ended by {name}; the same command goes on from here.\n"


def test_a_signal_that_is_ignored_stays_so(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup asks for."""
    from sordino.pipeline import runner

    monkeypatch.setattr(runner, "plan", lambda *_: os.kill(os.getpid(), signal.SIGHUP) or [])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["plan", str(made.recipe(made.root))]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", sorted(OF_THE_MACHINE))
def test_an_error_of_the_machine_is_one_line_wherever_it_comes_from(
    made: Made, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    from sordino.pipeline import runner

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number), "there/it")

    monkeypatch.setattr(runner, "plan", failing)
    message = refusal(capsys, "plan", made.recipe(made.root))
    assert message.startswith("sordino: there/it: ")
    assert message.count("\n") == 1


def test_words_with_nul(capsys: Capsys) -> None:
    assert "holds NUL" in refusal(capsys, "inspect", "a\0b")


STREAMS = [["--help"], ["rank", "--help"], ["settings"], ["inspect", "demo/base"], ["inspect", "demo/base", "--json"]]


def program(*words: str, stdout: Any, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The command line as a process of its own."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "", **variables}
    command = [sys.executable, "-m", "sordino.cli", *words]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, env=environment, check=False, timeout=300
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("words", STREAMS, ids=" ".join)
def test_a_full_disk_behind_stdout_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = program(*words, stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith(b"sordino: standard output: the disk is full.")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("words", STREAMS, ids=" ".join)
def test_a_reader_that_has_left_is_no_error_of_any_command(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = program(*words, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_stdout_is_no_error() -> None:
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'sordino.cli', 'settings'])"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=ROOT, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_of_stdout_loses_a_text(tmp_path: Path, encoding: str) -> None:
    """Printed as it is where that can be, else escaped; JSON is JSON in any case."""
    model = tmp_path / "größe 大小\udcff"  # the last: a byte of a name that is no UTF-8
    shutil.copytree(ROOT / "demo/base", model)
    plain = program("inspect", str(model), stdout=subprocess.PIPE, PYTHONIOENCODING=encoding)
    assert (plain.returncode, plain.stderr) == (0, b"")
    shown = plain.stdout.decode(encoding)
    assert "größe" in shown if encoding != "ascii" else "gr\\xf6\\xdfe" in shown
    assert "大小" in shown if encoding == "utf-8" else "\\u5927\\u5c0f" in shown
    as_json = program("inspect", str(model), "--json", stdout=subprocess.PIPE, PYTHONIOENCODING=encoding)
    assert as_json.returncode == 0
    assert json.loads(as_json.stdout.decode(encoding).splitlines()[-1])["model"] == str(model)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["help", "rank"],
        ["families"],
        ["settings"],
        ["inspect", "demo/base"],
        ["plan", "demo"],
        ["score", "--help"],
    ],
    ids=" ".join,
)
def test_what_needs_no_torch_does_not_import_it(words: list[str]) -> None:
    code = (
        "import sys; from sordino import cli\n"
        "try: code = cli.main(sys.argv[1:])\n"
        "except SystemExit as ended: code = ended.code\n"
        f"assert code == 0, code; print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_is_the_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "sordino.cli", "families", "--json"], capture_output=True, check=True)
    assert "qwen2_audio" in json.loads(done.stdout)["families"]
