"""README's Python, run as it stands; with a pico model and made-up sounds where the demo's are not at hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.config import card
from sordino.measure.audit import audit
from tests.stages.runs import write_corpus

ROOT = Path(__file__).parents[1]


def python() -> str:
    """README's block of Python."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def prepare(block: str, directory: Path, pico_dir: Callable[[str], Path]) -> str:
    """The block, with a corpus of tones in `directory` and a pico model in place of the demo's."""
    corpus = write_corpus(directory / "corpus", ("select",) * 3)
    for demo, place in (("demo/corpus", corpus), ("demo/base", pico_dir("qwen2_audio"))):
        assert f'"{demo}"' in block
        block = block.replace(demo, str(place))
    return block


def test_it_runs_and_tells_what_it_should(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but for the directory that it writes to."""
    monkeypatch.chdir(ROOT)
    block = python()
    assert len([line for line in block.splitlines() if line]) <= 12
    exec(compile(block.replace('"out/', f'"{tmp_path}/'), "README.md", "exec"), {})
    text, chrf, size = capsys.readouterr().out.splitlines()
    assert re.search(r"[a-z]{3}", text)
    assert 20 < float(chrf) < 100
    assert int(size) == audit(tmp_path / "small-nf4").weights_bytes < audit(tmp_path / "small").weights_bytes / 2
    assert card.read(tmp_path / "small-nf4").target == "German"
