"""The wheel in an empty environment, used from an empty directory: nothing of the checkout may be needed.

The environment takes the libraries from this one, which has them already; sordino itself comes from the wheel alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import sordino
from tests import test_readme
from tests.models.test_shapes import QWEN2_AUDIO_7B

pytestmark = pytest.mark.isolated
ROOT = Path(__file__).parents[1]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def checked(words: Sequence[str | Path]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    checked([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT])
    (file,) = directory.glob("sordino-*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the programs of an environment with the wheel in it."""
    directory = tmp_path_factory.mktemp("environment")
    checked([sys.executable, "-m", "venv", "--without-pip", directory])
    programs = directory / "bin"
    checked([sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet", "--no-deps", wheel])
    scheme = {"base": str(directory), "platbase": str(directory)}
    own = Path(sysconfig.get_path("purelib", "venv", scheme))
    # a path in a .pth file comes after the environment's own, and .pth files in it (an editable sordino's) do nothing
    libraries = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (own / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    return programs


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Run:
    """Run a program of the environment in an empty directory, without this process's paths."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def program(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [environment / name, *words]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    return program


def test_what_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for file in (ROOT / "src").rglob("*.py"):
        assert file.relative_to(ROOT / "src").as_posix() in names
    assert "sordino/py.typed" in names
    assert {"demo", "paper_b_en_de"} <= {Path(name).stem for name in names if name.startswith("sordino/recipes/")}
    assert not [
        name for name in names if name.split("/")[0] not in ("sordino", f"sordino-{sordino.__version__}.dist-info")
    ]


def test_the_package_is_the_wheels(run: Run, environment: Path) -> None:
    done = run("python", "-c", "import sordino, transformers; print(sordino.__file__, sordino.__version__)")
    file, version = done.stdout.split()
    assert Path(file).is_relative_to(environment.parent)
    assert version == sordino.__version__


def test_help_and_families(run: Run) -> None:
    printed = run("sordino", "--help")
    assert printed.returncode == 0 and "usage: sordino" in printed.stdout
    families = run("sordino", "families", "--json")
    assert families.returncode == 0, families.stderr
    assert "qwen2_audio" in families.stdout


def test_the_demos_recipe_says_where_its_data_is(run: Run, tmp_path: Path) -> None:
    done = run("sordino", "plan", "demo")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "checkout" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_shipped_recipe_is_planned_by_its_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN2_AUDIO_7B), encoding="utf-8")
    (tmp_path / "corpus").mkdir()
    done = run("sordino", "plan", "paper_b_en_de", "--config", "config.json", "data.path=corpus", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads(done.stdout.splitlines()[-1])["plan"]
    forecast = {line["stage"]: line["forecast"] for line in lines}
    assert forecast["finetune"]["size"] == pytest.approx(16.8e9, rel=0.01)


def test_the_servers_page_is_in_it(run: Run) -> None:
    code = "from importlib.resources import files; print(files('sordino.serve').joinpath('page.html').read_text()[:15])"
    done = run("python", "-c", code)
    assert done.stdout == "<!doctype html>\n", done.stderr


def test_the_readmes_python_runs(run: Run, tmp_path: Path, pico_dir: Callable[[str], Path]) -> None:
    """With a pico model and a corpus of tones where it names the demo's."""
    done = run("python", "-c", test_readme.prepare(test_readme.python(), tmp_path, pico_dir))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3
