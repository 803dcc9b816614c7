"""`sordino serve`: which models it serves, how it ends, and the lines of its documentation."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from sordino.errors import ArtifactError, FamilyError, RecipeError
from sordino.inference import translation
from sordino.models import llama_cpp
from sordino.serve import catalog
from sordino.serve.settings import Settings
from tests.serve.serving import SHORT, TRANSLATIONS, in_process, listening, service_of, speech, until
from tests.stages.runs import Made, refusal

Capsys = pytest.CaptureFixture[str]
DOCS = Path(__file__).parents[2] / "docs" / "serve.md"


def names(*models: str | Path, **settings: str) -> list[str]:
    return [entry.id for entry in catalog.entries([str(model) for model in models], Settings(**settings))]  # type: ignore[arg-type]


# -- which models


def test_a_run_is_its_teacher_and_its_smallest_export(made: Made) -> None:
    teacher, student = catalog.entries([str(made.finished)], Settings())
    assert (teacher.id, student.id) == ("run/teacher", "run/nf4")
    assert (teacher.source, teacher.target, teacher.trained) == ("en", "de", True)
    assert teacher.bytes == (made.finished / "20-teacher" / "model.safetensors").stat().st_size
    assert student.bytes is not None
    assert student.bytes < teacher.bytes


def test_every_kind_of_model_of_a_run_is_served(made: Made, tmp_path: Path) -> None:
    kinds = ["20-teacher", "40-pruned", "61-adapter", "63-trimmed", "70-export/nf4", "70-export/w4a16"]
    settings = dataclasses.replace(SHORT, max_new_tokens=5)
    service = service_of(*(made.finished / kind for kind in kinds), settings=settings)
    assert [entry.id for entry in service.entries] == [
        *("run/teacher", "run/pruned", "run/adapter", "run/trimmed", "run/nf4", "run/w4a16")
    ]
    (tmp_path / "clip.wav").write_bytes(speech())
    options = {"device": "cpu", "dtype": "float32", "max_new_tokens": 5}
    with in_process(service) as client:
        for kind, entry in zip(kinds, service.entries, strict=True):
            answer = client.post(TRANSLATIONS, files={"file": ("a.wav", speech())}, data={"model": entry.id})
            (row,) = translation.translate_files(str(made.finished / kind), [str(tmp_path / "clip.wav")], **options)
            assert answer.json()["text"] == row["text"], kind
    weights = {entry.id: entry.bytes or 0 for entry in service.entries}
    assert weights["run/adapter"] > weights["run/pruned"], "an adapter is weighed with its base"


def test_a_run_that_is_not_finished(made: Made, tmp_path: Path) -> None:
    run = tmp_path / "half"
    shutil.copytree(made.finished / "20-teacher", run / "20-teacher")
    assert names(run) == ["half/teacher"]
    shutil.copytree(made.finished / "60-student", run / "60-student")
    assert names(run) == ["half/teacher", "half/student"]
    for directory in ("20-teacher", "60-student"):
        (run / directory / "stage.json").unlink()
    with pytest.raises(ArtifactError, match="holds no finished model"):
        names(run)


def test_a_gguf_export_is_left_out_where_nothing_can_run_it(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.finished / "70-export", run / "70-export")
    small = run / "70-export" / "gguf-q8_0"
    shutil.copytree(run / "70-export" / "nf4", small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gguf", "file": "decoder.gguf"}})
    )
    (small / "model.safetensors").write_bytes((small / "model.safetensors").read_bytes())
    monkeypatch.setattr(catalog.size, "measure", lambda path: _Weighs(1 if "gguf" in path.name else 2))
    monkeypatch.setattr(llama_cpp, "available", lambda: True)
    assert names(run) == ["run/gguf-q8_0"]
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    capsys.readouterr()
    assert names(run) != ["run/gguf-q8_0"]
    assert "gguf-q8_0 is left out: llama-cpp-python is not installed" in capsys.readouterr().err


@dataclasses.dataclass
class _Weighs:
    weights_bytes: int


def test_names(german: Path, pico_dir: Callable[[str], Path], tmp_path: Path) -> None:
    plain = pico_dir("qwen2_audio")
    assert names(german, f"other={plain}") == ["german", "other"]
    with pytest.raises(RecipeError, match=r"two models are called german.*NAME=MODEL"):
        names(german, f"german={plain}")
    odd = tmp_path / "a=b"
    shutil.copytree(german, odd)
    assert names(odd) == ["a=b"]


def test_languages_of_a_model_are_not_overridden(german: Path, pico_dir: Callable[[str], Path]) -> None:
    assert names(german, target="German", source="en") == ["german"]
    with pytest.raises(RecipeError, match="trained to translate from en into de, not --to zh"):
        names(german, target="zh")
    with pytest.raises(RecipeError, match="not --from fr"):
        names(german, source="fr")
    (plain,) = catalog.entries([str(pico_dir("qwen2_audio"))], Settings(target="zh"))
    assert (plain.source, plain.target) == ("en", "zh")


def test_what_is_no_model_is_refused_before_anything_listens(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    assert "there is no model directory" in refusal(capsys, "serve", tmp_path / "gone")
    assert "holds no config.json" in refusal(capsys, "serve", tmp_path)
    with pytest.raises((FamilyError, ArtifactError)):
        names(made.finished / "70-export")


def test_options_that_cannot_be(german: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refusal(capsys, "serve", german, "--port", str(taken.getsockname()[1]))
    assert "cannot be used" in said
    assert "--port" in said
    assert "serve: no.such.host.invalid:8000" in refusal(capsys, "serve", german, "--host", "no.such.host.invalid")
    assert "there is no port 99999" in refusal(capsys, "serve", german, "--port", "99999")
    monkeypatch.setattr("sordino.serve.command.PACKAGES", ("starlette", "no_such_package"))
    said = refusal(capsys, "serve", german)
    assert said.strip() == "sordino: serve: no_such_package is not installed. Run: pip install '.[serve]'."


# -- a process of its own


@contextmanager
def process(*words: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`sordino serve` on a free port -> (the process, its address)."""
    command = [
        sys.executable,
        "-m",
        "sordino.cli",
        "serve",
        *map(str, words),
        "--port",
        "0",
        "--device",
        "cpu",
        "--json",
    ]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        try:
            assert running.stderr
            address = next(found[0] for line in running.stderr if (found := re.findall(r"http://\S+", line)))
            yield running, address
        finally:
            running.kill()


def ready(address: str) -> bool:
    return httpx2.get(address + "/health").status_code == 200


def answers_at_all(address: str) -> bool:
    try:
        return httpx2.get(address + "/health").status_code > 0
    except httpx2.TransportError:
        return False


def test_sigterm_ends_it_when_the_requests_are_answered(german: Path) -> None:
    with process(german, "--max-new-tokens", "400", "--batch-size", "2") as (running, address):
        until(lambda: answers_at_all(address) and ready(address), 120)

        def ask(seed: int) -> httpx2.Response:
            return httpx2.post(address + TRANSLATIONS, files={"file": ("a.wav", speech(seed))}, timeout=120)

        with ThreadPoolExecutor(6) as threads:
            asked = [threads.submit(ask, seed) for seed in range(6)]
            until(lambda: "sordino_requests_in_progress 6" in httpx2.get(address + "/metrics").text)
            running.send_signal(signal.SIGTERM)
            answers = [answer.result() for answer in asked]
        out, err = running.communicate(timeout=120)
    assert [answer.status_code for answer in answers] == [200] * 6
    assert running.returncode == 0, err
    assert "Traceback" not in err
    result = json.loads(out.splitlines()[-1])
    assert result["served"] == ["german"]
    assert result["requests"] >= 7
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(address)


def test_ctrl_c_ends_it_while_it_loads(german: Path) -> None:
    with process(german) as (running, address):
        until(lambda: answers_at_all(address), 120)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["served"] == ["german"]


def test_a_model_that_does_not_load_ends_it_with_2(german: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(german, broken)
    (broken / "tokenizer.json").write_text("{")
    with process(broken) as (running, _):
        _, err = running.communicate(timeout=120)
    assert running.returncode == 2
    assert "sordino: the processor in" in err
    assert "Traceback" not in err


# -- the documentation


@pytest.fixture(scope="module")
def documented(german: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a server with the model that docs/serve.md asks for, and a directory with its audio."""
    directory = tmp_path_factory.mktemp("docs")
    (directory / "talk.wav").write_bytes(speech())
    service = service_of(german)
    service.entries = [dataclasses.replace(service.entries[0], id="demo-en-de/nf4")]
    with listening(service) as address:
        yield address, directory


def lines_of_curl() -> list[str]:
    return [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("curl ")]


def test_there_are_lines_of_curl() -> None:
    assert len(lines_of_curl()) >= 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", lines_of_curl())
def test_a_line_of_curl(line: str, documented: tuple[str, Path]) -> None:
    address, directory = documented
    words = shlex.split(line.replace("http://127.0.0.1:8000", address))
    done = subprocess.run([*words, "--fail", "-sS"], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "stream=true" in line:
        assert done.stdout.endswith("data: [DONE]\n\n")
    elif "srt" in line:
        assert "00:00:00,000 --> 00:00:00,600" in done.stdout
    elif "metrics" in line:
        assert "# TYPE sordino_requests_total counter" in done.stdout
    else:
        assert json.loads(done.stdout)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI's, see test_openai_client.py
def test_the_lines_of_python(documented: tuple[str, Path], capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    address, directory = documented
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(directory)
    capsys.readouterr()
    exec(compile(code.replace("http://127.0.0.1:8000", address), str(DOCS), "exec"), {})
    assert capsys.readouterr().out.strip()
