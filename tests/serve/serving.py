"""A server in this process: through Starlette's client, or listening on a free port of this machine."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import soundfile
from starlette.testclient import TestClient

from sordino.serve import catalog
from sordino.serve.app import application
from sordino.serve.connection import make_server
from sordino.serve.service import Service
from sordino.serve.settings import Settings
from tests.tiny import RATE, clip

TRANSLATIONS, CHAT = "/v1/audio/translations", "/v1/chat/completions"
SHORT = Settings(device="cpu", dtype="float32", max_new_tokens=8)
CARD = {"prompt": {"style": "chat", "system": "auto", "instruction": "Into {target}:", "example": []}}


def model_with_card(source: Path, directory: Path) -> Path:
    """A copy of a model directory that says that it translates from English into German."""
    shutil.copytree(source, directory)
    (directory / "sordino.json").write_text(json.dumps(CARD | {"source": "en", "target": "de"}), encoding="utf-8")
    return directory


def wav(samples: Any, rate: int = RATE, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def speech(seed: int = 0, seconds: float = 0.6) -> bytes:
    return wav(clip(seed, seconds))


def silence(seconds: float) -> bytes:
    return wav(np.zeros(round(seconds * RATE), dtype=np.float32))


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for another thread; fails where it never gets there."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.01)


def service_of(*models: str | Path, settings: Settings = SHORT) -> Service:
    return Service(catalog.entries([str(model) for model in models], settings), settings)


@contextmanager
def in_process(service: Service) -> Iterator[TestClient]:
    """A client of a service whose models are loaded."""
    with TestClient(application(service), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        until(lambda: service.ready or service.failure)
        yield client


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """The address of a service whose models are loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = make_server(application(service), service.settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            until(lambda: service.ready or service.failure)
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


async def gathered(service: Service, clips: list[bytes]) -> list[str]:
    """The texts of clips that are sent all at once."""
    app = application(service)
    async with app.router.lifespan_context(app):
        while not service.ready:
            await asyncio.sleep(0.01)
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            work = (client.post(TRANSLATIONS, files={"file": ("a.wav", each)}) for each in clips)
            answers = await asyncio.gather(*work)
    assert [answer.status_code for answer in answers] == [200] * len(clips)
    return [answer.json()["text"] for answer in answers]
