"""docs/add_a_family.md is literally true: its toy, written from the page, goes through everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.toy_plugin import DIRECTORY

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add_a_family.md"
VARIANTS = ("encoder-free", "q-former")


def blocks() -> dict[str, str]:
    """Title (the first line's comment) -> code block of the page."""
    code = re.findall(r"```python\n# ([^\n]+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return dict(code)


@pytest.fixture(scope="module", params=VARIANTS)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with toy.py, as the page has it."""
    page = blocks()
    assert set(page) == {"toy.py", "registry.py, in FAMILIES", "toy.py, with an encoder"}
    text = page["toy.py"]
    if request.param == "q-former":
        text += "\n\n" + page["toy.py, with an encoder"]
    directory = tmp_path_factory.mktemp("toy")
    (directory / "toy.py").write_text(text, encoding="utf-8")
    return directory


def python(toy: Path, *words: str | Path, code: int = 0) -> str:
    """A fresh interpreter in which the toy is the only family."""
    environment = {**os.environ, DIRECTORY: str(toy), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_contract(toy: Path) -> None:
    out = python(toy, "-m", "pytest", "-q", "-p", "tests.models.toy_plugin", "tests/models/test_contract.py")
    assert re.search(r"\d{2} passed", out) or "[100%]" in out


SCRIPT = """
import sys
from pathlib import Path

import tests.models.toy_plugin
from sordino.models import registry
from tests.stages import runs

root = Path(sys.argv[1])
registry.get("toy").tiny(str(root / "model"), 5, int(sys.argv[2]), 1)
runs.write_corpus(root / "corpus")
changes = {name: None for name in ("finetune", "pseudolabel", "distil", "qlora", "merge", "trim")}
changes |= {"export": {"formats": ["bf16"]}, "rank": {"remove": 2, "clips": 3, "max_new_tokens": 4}}
recipe = runs.recipe_file(root, root / "model", root / "corpus", changes)
for command in ("plan", "run", "check"):
    runs.run(command, recipe)
runs.run("translate", root / "runs" / "run" / "70-export" / "bf16", root / "corpus" / "clip00.flac", "--json")
"""


def test_the_chain(toy: Path, tmp_path: Path) -> None:
    layers = 3 if "dataclasses" in (toy / "toy.py").read_text(encoding="utf-8") else 0
    out = python(toy, "-c", SCRIPT, tmp_path, str(layers))
    text = json.loads(out.splitlines()[-1])
    assert len(text["hypotheses"]) == 1
    run = tmp_path / "runs" / "run"
    trials = [json.loads(line) for line in (run / "30-ranking" / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == 1 + 3 + 2
    config = json.loads((run / "70-export" / "bf16" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 3
