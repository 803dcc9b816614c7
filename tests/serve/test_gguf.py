"""A GGUF export behind the server. Needs llama-cpp-python (make test-gguf)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from sordino.formats import gguf
from sordino.inference import translation
from tests.serve.serving import SHORT, gathered, service_of, speech

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")

SECONDS = (0.4, 1.9, 0.7, 1.2, 3.0)


def test_a_gguf_export_answers_as_on_the_command_line(german: Path, tmp_path: Path) -> None:
    export = tmp_path / "gguf-q8_0"
    export.mkdir()
    gguf.Gguf("gguf-q8_0").write(str(german), export)
    clips = [speech(i, seconds) for i, seconds in enumerate(SECONDS)]
    for i, audio in enumerate(clips):
        (tmp_path / f"{i}.wav").write_bytes(audio)
    service = service_of(f"small={export}", settings=replace(SHORT, target="de"))
    (entry,) = service.entries
    weights = [file for file in export.iterdir() if file.suffix in (".safetensors", ".gguf")]
    assert entry.bytes == sum(file.stat().st_size for file in weights)
    texts = asyncio.run(gathered(service, clips))
    options = {"target": "de", "device": "cpu", "dtype": "float32", "max_new_tokens": SHORT.max_new_tokens}
    named = [str(tmp_path / f"{i}.wav") for i in range(len(clips))]
    assert [row["text"] for row in translation.translate_files(str(export), named, **options)] == texts
    assert len(set(texts)) > 1
