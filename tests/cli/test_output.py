"""What a model says, and what files are called, never steers the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.cli import main
from tests.data.sounds import save, tone


def test_translations_do_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": "a", "audio": "a\x1b[31m.wav", "text": "Hallo.\x1b]0;owned\a\nZwei.", "seconds": 1.0, "tokens": 3}]
    monkeypatch.setattr("sordino.inference.translation.translate_files", lambda *_, **__: rows)
    monkeypatch.setattr("sordino.inference.long_audio.needed", lambda *_: False)
    assert main(["translate", "model", str(save(tmp_path / "a.wav", tone(1.0))), "--to", "de"]) == 0
    assert capsys.readouterr().out == "Hallo.\\x1b]0;owned\\x07\nZwei.\n"
    rows.append(rows[0])
    assert main(["translate", "model", "a.wav", "b.wav", "--to", "de"]) == 0
    assert capsys.readouterr().out.startswith("a\\x1b[31m.wav\tHallo.\\x1b]0;owned\\x07 Zwei.\n")
