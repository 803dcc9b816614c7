"""Names that look like rich's markup are printed as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.cli import main


def test_a_path_with_brackets_is_printed_whole(
    pico_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "[red]m[").symlink_to(pico_dir("qwen2_audio"))
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "[red]m["]) == 0
    assert "[red]m[" in capsys.readouterr().out
