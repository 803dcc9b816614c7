"""What a server takes on, and what it does when that is enough; nobody's request changes another's answer."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from benchmarks.longform import make_talk
from sordino.errors import FamilyError
from sordino.inference import translation
from sordino.serve import decoding
from sordino.serve.app import application
from tests.serve.serving import SHORT, TRANSLATIONS, gathered, in_process, listening, service_of, speech, until, wav
from tests.tiny import clip

SECONDS = (0.4, 3.1, 0.9, 1.7, 0.5, 2.2, 1.1, 0.7, 3.9, 1.3, 0.6, 2.8, 1.9, 0.8)


def post(client: TestClient, audio: bytes, **fields: Any) -> Any:
    return client.post(TRANSLATIONS, files={"file": ("clip.wav", audio)}, data=fields)


class Gate(threading.Event):
    """Nothing is decoded before it is set. batches: ids of the clips that came to it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, decode = Gate(), decoding.ServedModel.decode

    def waiting(model: decoding.ServedModel, batch: Any) -> Any:
        gate.batches.append([one.encoded.clip.id for one in batch])
        gate.wait()
        return decode(model, batch)

    monkeypatch.setattr(decoding.ServedModel, "decode", waiting)
    yield gate
    gate.set()


# -- batching


@pytest.mark.parametrize("family", ["qwen2_audio", "voxtral"])
def test_together_or_one_at_a_time_is_the_same(family: str, pico_dir: Any, tmp_path: Path) -> None:
    """In float32, to the letter, and the same as `sordino translate` gives."""
    settings = replace(SHORT, target="de", max_new_tokens=24, batch_size=5)
    model = f"m={pico_dir(family)}"
    clips = [wav(clip(i, seconds)) for i, seconds in enumerate(SECONDS)]
    service = service_of(model, settings=settings)
    together = asyncio.run(gathered(service, clips))
    batches = service.metrics.value("sordino_batches_total", model="m")
    assert batches < len(clips) / 2, "they were decoded together"
    with in_process(service_of(model, settings=settings)) as client:
        alone = [post(client, audio).json()["text"] for audio in clips]
    assert together == alone
    assert len(set(alone)) > len(clips) / 2
    for i, audio in enumerate(clips):
        (tmp_path / f"{i:02}.wav").write_bytes(audio)
    named = [str(file) for file in sorted(tmp_path.glob("*.wav"))]
    options = {"target": "de", "device": "cpu", "dtype": "float32", "max_new_tokens": 24, "batch_size": 1}
    assert [row["text"] for row in translation.translate_files(str(pico_dir(family)), named, **options)] == alone


def test_a_bad_clip_does_not_spoil_its_batch(german: Path) -> None:
    good = speech(1, 0.7)

    async def both() -> list[Any]:
        service = service_of(german)
        app = application(service)
        async with app.router.lifespan_context(app):
            while not service.ready:
                await asyncio.sleep(0.01)
            transport = httpx2.ASGITransport(app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                work = (
                    client.post(TRANSLATIONS, files={"file": ("a.wav", each)})
                    for each in (good, wav(0 * clip(0, 0.7)), good, speech(0, 0.05))
                )
                answers = await asyncio.gather(*work)
        assert service.metrics.value("sordino_batches_total", model="german") == 1
        return answers

    answers = asyncio.run(both())
    assert [answer.status_code for answer in answers] == [200, 400, 200, 400]
    assert answers[0].json() == answers[2].json()


# -- the queue and time


def test_a_full_queue_is_429_and_says_when_to_come_back(german: Path, gate: Gate) -> None:
    service = service_of(german, settings=replace(SHORT, queue=2))
    with in_process(service) as client, ThreadPoolExecutor(2) as threads:
        running = [threads.submit(post, client, speech(i)) for i in range(2)]
        until(lambda: service.active == 2)
        refused = post(client, speech())
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"] == {
            "message": "2 requests are being worked on; try again in 1 s.",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
        gate.set()
        assert [answer.result().status_code for answer in running] == [200, 200]
        assert post(client, speech()).status_code == 200
    assert service.active == 0


def test_a_translation_that_takes_too_long(german: Path, gate: Gate) -> None:
    with in_process(service_of(german, settings=replace(SHORT, timeout=0.05))) as client:
        answer = post(client, speech())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
        stream = post(client, speech(), stream="true")
        assert stream.status_code == 200, "it had begun"
        assert json.loads(stream.text.removeprefix("data: "))["error"]["code"] == "timeout"
        gate.set()


def test_who_has_gone_is_not_translated_for(german: Path, gate: Gate) -> None:
    service = service_of(german, settings=replace(SHORT, batch_size=1))
    with listening(service) as address, ThreadPoolExecutor(1) as threads:
        first = threads.submit(httpx2.post, address + TRANSLATIONS, files={"file": ("a.wav", speech())}, timeout=60)
        until(lambda: gate.batches)
        request = httpx2.Request("POST", address + TRANSLATIONS, files={"file": ("a.wav", speech())})
        body = request.read()
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        with socket.create_connection(("127.0.0.1", request.url.port or 0)) as leaving:
            leaving.sendall(f"POST {TRANSLATIONS} HTTP/1.1\r\n{head}\r\n".encode() + body)
            until(lambda: len(service.batcher.waiting) == 1)
        until(lambda: service.active == 1)
        gate.set()
        assert first.result().status_code == 200
    assert service.metrics.value("sordino_clips_total", model="german") == 1


def test_a_long_talk_leaves_room_for_others(german: Path, tmp_path: Path, gate: Gate) -> None:
    """A batch of its pieces waits at once, so a clip that comes meanwhile is not behind all of them."""
    service = service_of(german, settings=replace(SHORT, batch_size=4))
    talk = make_talk(tmp_path, 60).read_bytes()
    with in_process(service) as client, ThreadPoolExecutor(2) as threads:
        long = threads.submit(post, client, talk, response_format="verbose_json")
        until(lambda: gate.batches)
        short = threads.submit(post, client, speech())
        until(lambda: service.batcher.waiting)
        gate.set()
        assert short.result().status_code == 200
        assert len(long.result().json()["segments"]) > 12
    assert len(gate.batches[0]) == 4
    assert "audio" in gate.batches[1], "the clip's turn is the next"


# -- loading


def test_while_models_load_it_is_503(german: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, load = threading.Event(), decoding.open_model
    monkeypatch.setattr(decoding, "open_model", lambda *words, **options: loading.wait() and load(*words, **options))
    service = service_of(german)
    with TestClient(application(service), base_url="http://127.0.0.1") as client:
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        answer = post(client, speech())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/v1/models").status_code == 200
        assert client.get("/").status_code == 200
        loading.set()
        until(lambda: client.get("/health").status_code == 200)
        assert post(client, speech()).status_code == 200


def test_a_model_that_does_not_load_ends_the_server(german: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise FamilyError("the weights do not load.")

    monkeypatch.setattr(decoding, "open_model", broken)
    stopped = threading.Event()
    service = service_of(german)
    service.failed = stopped.set
    with in_process(service):
        until(stopped.is_set)
    assert isinstance(service.failure, FamilyError)


# -- errors that are ours


def test_a_bug_is_500_without_details_and_memory_503(german: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [RuntimeError("secret path"), MemoryError(), RuntimeError("CUDA out of memory")]

    def failing(*_: Any) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(decoding, "generate", failing)
    with in_process(service_of(german)) as client:
        answers = [post(client, speech()) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [500, 503, 503]
        assert "secret" not in answers[0].text
        assert "--batch-size" in answers[1].json()["error"]["message"]
        assert client.get("/health").status_code == 200


# -- who may ask


def test_a_key_is_needed_for_all_but_the_page_and_health(german: Path) -> None:
    with in_process(service_of(german, settings=replace(SHORT, api_key="sesame"))) as client:
        for path in ("/v1/models", "/metrics", "/v1/models/german", "/nowhere"):
            for given in ("", "Bearer wrong", "Bearer sesam", "Basic sesame", "sesame"):
                answer = client.get(path, headers={"authorization": given} if given else {})
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
        assert post(client, speech()).status_code == 401
        assert client.get("/").status_code == client.get("/health").status_code == 200
        key = {"authorization": "Bearer sesame"}
        assert client.get("/v1/models", headers=key).status_code == 200
        assert client.post(TRANSLATIONS, files={"file": ("a.wav", speech())}, headers=key).status_code == 200


def test_a_key_may_hold_any_letter(german: Path) -> None:
    app = application(service_of(german, settings=replace(SHORT, api_key="sésame")))

    async def status(key: bytes) -> int:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return (await client.get("/v1/models", headers={b"authorization": b"Bearer " + key})).status_code

    assert [asyncio.run(status(key)) for key in ("sésame".encode(), b"s\xff", b"s\xe9same")] == [200, 401, 401]


def test_pages_of_others_may_not_use_a_local_server(client: TestClient) -> None:
    """A site in the user's browser can reach 127.0.0.1, by its address or by a name that was made to point there."""
    for headers in ({"host": "evil.example"}, {"host": "evil.example:8000"}, {"origin": "http://evil.example"}):
        assert client.get("/v1/models", headers=headers).status_code == 403
    assert client.get("/v1/models", headers={"origin": "null"}).status_code == 403
    assert client.get("/v1/models", headers={"host": "[::1"}).status_code == 400
    for host in ("localhost:8000", "127.0.0.1:9", "[::1]:8000"):
        assert client.get("/v1/models", headers={"host": host, "origin": f"http://{host}"}).status_code == 200


def test_a_server_for_others_answers_to_its_names(german: Path) -> None:
    with in_process(service_of(german, settings=replace(SHORT, local=False))) as client:
        assert client.get("/v1/models", headers={"host": "speech.example"}).status_code == 200
        assert client.get("/v1/models", headers={"host": "a.example", "origin": "http://b.example"}).status_code == 403
