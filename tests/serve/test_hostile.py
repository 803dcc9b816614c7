"""Malformed and hostile requests: each is answered with 4xx, and the server lives on, no larger than before."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
import soundfile

from sordino.serve import connection
from tests.serve.serving import CHAT, SHORT, TRANSLATIONS, listening, service_of, silence, speech, until, wav
from tests.tiny import clip

MIB = 2**20
LIMITS = replace(SHORT, max_file_bytes=MIB, max_decoded_bytes=4 * MIB, upload_seconds=0.5)
GROWTH = 32 * MIB  # of the resident set after a second round of all of them
FORM = "multipart/form-data; boundary=x"

Answer = tuple[int, bytes]
Attack = Callable[[str], Answer]


@pytest.fixture(scope="module")
def address(german: Path) -> Iterator[str]:
    with listening(service_of(german, settings=LIMITS)) as made:
        yield made


def form(content: bytes = b"", name: str = "a.wav", **fields: Any) -> Attack:
    """A form with a file."""
    return request(TRANSLATIONS, files={"file": (name, content or speech())}, data=fields)


def request(path: str, method: str = "POST", **content: Any) -> Attack:
    def attack(address: str) -> Answer:
        answer = httpx2.request(method, address + path, timeout=60, **content)
        return answer.status_code, answer.content

    return attack


def body(content: bytes, kind: str = FORM, path: str = TRANSLATIONS, **headers: str) -> Attack:
    return request(path, content=content, headers={"content-type": kind, **headers})


def field(name: str, value: str = "x", file: str | None = None) -> bytes:
    named = f'; filename="{file}"' if file is not None else ""
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n{value}\r\n'.encode()


def raw(*sent: bytes) -> Attack:
    """Bytes on a socket; the answer until it is closed."""

    def attack(address: str) -> Answer:
        place = urlsplit(address)
        with socket.create_connection((place.hostname, place.port), timeout=20) as connected:
            answer = b""
            try:
                for part in sent:
                    connected.sendall(part)
                while block := connected.recv(65536):
                    answer += block
            except (ConnectionResetError, BrokenPipeError):
                pass  # closed on us with bytes on the way; the answer came before
        assert answer.startswith(b"HTTP/1.1 "), answer[:100]
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), content

    return attack


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()


def said(content: Any, kind: str = "input_audio", **fields: Any) -> Attack:
    """A chat with one part."""
    messages = [{"role": "user", "content": [{"type": kind, kind: content}]}]
    return request(CHAT, json={"messages": messages} | fields)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.wav", bytes(50 * MIB))
    return file.getvalue()


def flac_of(seconds: float, rate: int, channels: int) -> bytes:
    """A few kilobytes that stand for many samples."""
    file = io.BytesIO()
    shape = (round(seconds * rate), channels)
    soundfile.write(file, np.zeros(shape, dtype=np.int16), rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def longer_header(content: bytes) -> bytes:
    return content[:40] + (10**8).to_bytes(4, "little") + content[44:]


def not_numbers() -> bytes:
    samples = clip(0, 0.5)
    samples[3] = np.inf
    return wav(samples, subtype="FLOAT")


HEARD = {"data": base64.b64encode(speech()).decode(), "format": "wav"}
DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

ATTACKS: dict[str, Attack] = {
    "no body": body(b""),
    "another kind of body": body(b"{}", "application/json"),
    "no kind of body": request(TRANSLATIONS, content=b"abc"),
    "an urlencoded form": body(b"model=x&file=y", "application/x-www-form-urlencoded"),
    "no boundary": body(b"abc", "multipart/form-data"),
    "an empty boundary": body(b"abc", "multipart/form-data; boundary="),
    "a boundary of 10 kB": body(b"abc", f"multipart/form-data; boundary={'x' * 10_000}"),
    "no form at all": body(os.urandom(5000)),
    "a form without an end": body(field("file", "x" * 1000, "a.wav")),
    "a part without a name": body(b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n"),
    "a charset that is no codec of texts": body(field("a") + b"--x--\r\n", FORM + "; charset=zlib_codec"),
    "a charset that always fails": body(field("a") + b"--x--\r\n", FORM + "; charset=undefined"),
    "a field's header of 70 kB": body(b"--x\r\n" + b"A: " + b"x" * 70_000 + b"\r\n\r\nx\r\n--x--\r\n"),
    "no file": request(TRANSLATIONS, files={"model": (None, "german")}),
    "a file that is a text field": request(TRANSLATIONS, files={"file": (None, "/etc/passwd")}),
    "two files": request(TRANSLATIONS, files=[("file", ("a", speech())), ("file", ("b", speech()))]),
    "200 fields": body(b"".join(field(f"f{i}") for i in range(200)) + b"--x--\r\n"),
    "a field twice": body(field("model") + field("model") + field("file", "x", "a") + b"--x--\r\n"),
    "a field of 200 kB": form(response_format="x" * 200_000),
    "an unknown field": form(url="http://127.0.0.1:1/a.wav"),
    "an empty file": body(field("file", "", "a.wav") + b"--x--\r\n"),
    "a text as audio": form(b"this is a text file\n" * 50),
    "random bytes as audio": form(os.urandom(10_000)),
    "a truncated file": form(speech()[:5000]),
    "a truncated header": form(speech()[:30]),
    "a header that promises 100 MB": form(longer_header(speech())),
    "samples that are no numbers": form(not_numbers()),
    "silence": form(silence(1.0)),
    "a zip of zeros": form(zipped()),
    "eleven minutes in a few kB": form(flac_of(660, 8000, 1)),
    "samples that would fill the memory": form(flac_of(5, 96_000, 8)),
    "a compressed body": body(gzip.compress(bytes(10 * MIB)), FORM, **{"content-encoding": "gzip"}),
    "a file that is too large": form(bytes(2 * MIB)),
    "a file that is much too large": form(bytes(3 * MIB)),
    "a path as the file's name": form(b"x" * 100, "../../../etc/passwd"),
    "a name with all letters": form(b"x" * 100, "\u202ea\u0000b\ud7ff" + "c" * 500),
    "a path as the model": form(model="../../../etc/passwd"),
    "a model of 50 kB": form(model="x" * 50_000),
    "a control token as the language": form(to_language="<|AUDIO|>"),
    "a format of no kind": form(response_format="exe"),
    "a temperature that is no number": form(temperature="1e999"),
    "a stream of subtitles": form(stream="1", response_format="vtt"),
    "a gigabyte promised": raw(head(TRANSLATIONS, f"Content-Type: {FORM}", "Content-Length: 1073741824")),
    "a gigabyte promised, asking first": raw(
        head(TRANSLATIONS, f"Content-Type: {FORM}", "Content-Length: 1073741824", "Expect: 100-continue")
    ),
    "a negative length": raw(head(TRANSLATIONS, f"Content-Type: {FORM}", "Content-Length: -1")),
    "two lengths": raw(head(TRANSLATIONS, "Content-Length: 3", "Content-Length: 4"), b"abcd"),
    "chunks without an end": raw(
        head(TRANSLATIONS, f"Content-Type: {FORM}", "Transfer-Encoding: chunked"),
        *[b"10000\r\n" + bytes(65536) + b"\r\n"] * 40,
    ),
    "chunks that are none": raw(head(TRANSLATIONS, f"Content-Type: {FORM}", "Transfer-Encoding: chunked"), b"zz\r\n"),
    "a body that does not come": raw(head(TRANSLATIONS, f"Content-Type: {FORM}", "Content-Length: 1000"), field("a")),
    "no HTTP": raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(50) + b"\r\n\r\n"),
    "a header of 200 kB": raw(head("/health", "A: " + "x" * 200_000, method="GET")),
    "another site's name": request("/v1/models", "GET", headers={"host": "evil.example"}),
    "another site's page": request("/v1/models", "GET", headers={"origin": "http://evil.example"}),
    "a path out of the server": raw(head("/../../etc/passwd", "Connection: close", method="GET")),
    "a method of no kind": request(TRANSLATIONS, "DELETE"),
    "chat: no JSON": body(b"{", "application/json", CHAT),
    "chat: a list": request(CHAT, json=[1, 2]),
    "chat: 100,000 brackets": body(DEEP, "application/json", CHAT),
    "chat: a number of 10,000 digits": body(b'{"n": ' + b"9" * 10_000 + b"}", "application/json", CHAT),
    "chat: no UTF-8": body(b'{"model": "\xff\xfe"}', "application/json", CHAT),
    "chat: too large": body(b'{"x": "' + b"y" * 3 * MIB + b'"}', "application/json", CHAT),
    "chat: an address for audio": said({"data": "http://169.254.169.254/latest/meta-data", "format": "wav"}),
    "chat: a file for audio": said({"data": "file:///etc/passwd", "format": "wav"}),
    "chat: a data URL": said({"data": "data:audio/wav;base64," + HEARD["data"], "format": "wav"}),
    "chat: an audio_url": said({"url": "http://127.0.0.1:1/"}, "audio_url"),
    "chat: a part that is null": request(CHAT, json={"messages": [{"role": "user", "content": [None]}]}),
    "chat: a number as audio": said({"data": 7, "format": "wav"}),
    "chat: tokens without end": said(HEARD, max_tokens=10**30),
    "chat: sampling": said(HEARD, temperature=[0]),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_request_is_refused(name: str, address: str) -> None:
    status, content = ATTACKS[name](address)
    assert 400 <= status < 500, content[:300]
    assert b"etc/passwd" not in content or b"There is no model" in content, "no path of anybody's"
    assert b"/tmp" not in content
    assert len(content) < 2000
    if content.startswith(b"{"):
        assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
    else:
        assert b"Invalid HTTP request received." in content, "which is no request to answer in JSON"
    assert httpx2.get(address + "/health").status_code == 200


def test_there_are_many() -> None:
    assert len(ATTACKS) >= 50


def test_memory_stays_flat_and_the_server_translates(address: str) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    for attack in ATTACKS.values():
        attack(address)
    assert resident() - before < GROWTH
    assert form()(address)[0] == 200
    assert b"sordino_requests_in_progress 0\n" in request("/metrics", "GET")(address)[1]


def test_a_connection_that_never_asks_is_closed(german: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.1)
    with listening(service_of(german)) as address:
        place = urlsplit(address)
        with socket.create_connection((place.hostname, place.port), timeout=60) as connected:
            connected.sendall(b"GET / HT")
            assert connected.recv(10) == b""


def test_nothing_is_left_in_the_temporary_directory(
    german: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with listening(service_of(german, settings=LIMITS)) as address:
        for name in ("a truncated file", "a file that is too large", "a form without an end", "no file"):
            ATTACKS[name](address)
        assert form()(address)[0] == 200
        assert form(stream="true")(address)[0] == 200
        until(lambda: not list(tmp_path.iterdir()))
