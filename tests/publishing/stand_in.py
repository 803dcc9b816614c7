"""A stand-in for the Hugging Face Hub: the calls that huggingface_hub makes to create a repository and commit to it.

Small files come inside the commit, those of LARGE through the LFS batch protocol. It serves one thread a request on
loopback, and remembers everything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

TOKEN = "hf_of_the_test"
LARGE = (".safetensors", ".gguf")  # .gitattributes of a new repository


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Hub:
    """repositories: by id; objects: LFS contents by SHA-256; requests: (method, path), in order; owners: whom the token
    may write for. broken: how many more uploads of objects break off."""

    endpoint: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    owners: tuple[str, ...] = ("me",)
    broken: int = 0

    def count(self, part: str) -> int:
        return sum(part in path for _, path in self.requests)


@contextmanager
def serving() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Every answer has the form of the Hub's own; an unknown call is a 501, which fails the test."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        path = self.path.partition("?")[0]
        body = self.read()
        self.hub.requests.append((method, path))
        for pattern, call in CALLS.items():
            wanted, _, route = pattern.partition(" ")
            match = re.fullmatch(route, path)
            if method == wanted and match:
                signed = self.headers.get("authorization") == f"Bearer {TOKEN}"
                if not signed and call not in (objects, validate):
                    self.send(401, {"error": "Invalid credentials in Authorization header"})
                else:
                    call(self, body, *match.groups())
                return
        self.send(501, {"error": f"{method} {path}"})

    def read(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, value: Any, code: str | None = None) -> None:
        """value: a text is sent as it is."""
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        if code:
            self.send_header("x-error-code", code)
            self.send_header("x-error-message", value["error"])
        self.end_headers()
        self.wfile.write(data)


def validate(handler: Handler, body: bytes) -> None:
    """Of the Hub's rules on front matter, those that could be broken here."""
    content = json.loads(body)["content"]
    front = yaml.safe_load(content.split("---\n")[1])
    errors = []
    for key in ("license", "pipeline_tag", "library_name"):
        if not isinstance(front.get(key), str):
            errors.append({"message": f'"{key}" must be a string'})
    base = front.get("base_model")
    if base is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        errors.append({"message": f'"base_model" with value "{base}" is not valid. Use a model id.'})
    if errors and handler.headers.get("accept") == "text/plain":
        handler.send(400, "\n".join(str(error["message"]) for error in errors))
    else:
        handler.send(400 if errors else 200, {"errors": errors, "warnings": []})


def info(handler: Handler, _: bytes, name: str) -> None:
    repository = handler.hub.repositories.get(name)
    if repository is None:
        handler.send(404, {"error": "Repository not found"}, "RepoNotFound")
        return
    siblings = [{"rfilename": file} for file in repository.files]
    handler.send(200, {"id": name, "private": repository.private, "sha": "0" * 40, "siblings": siblings, "tags": []})


def create(handler: Handler, body: bytes) -> None:
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    if asked["organization"] not in handler.hub.owners:
        handler.send(403, {"error": f"You don't have the rights to create a model under {asked['organization']}"})
        return
    private = asked.get("visibility") == "private" or asked.get("private") is True
    handler.hub.repositories[name] = Repository(private)
    handler.send(200, {"url": f"{handler.hub.endpoint}/{name}", "name": name})


def preupload(handler: Handler, body: bytes, _: str) -> None:
    rows = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
            "oid": None,
        }
        for file in json.loads(body)["files"]
    ]
    handler.send(200, {"files": rows})


def batch(handler: Handler, body: bytes, _: str) -> None:
    objects = []
    for row in json.loads(body)["objects"]:
        place = {"href": f"{handler.hub.endpoint}/objects/{row['oid']}"}
        there = row["oid"] in handler.hub.objects
        objects.append(row if there else row | {"actions": {"upload": place}})
    handler.send(200, {"transfer": "basic", "objects": objects})


def objects(handler: Handler, body: bytes, digest: str) -> None:
    if handler.hub.broken:
        handler.hub.broken -= 1
        handler.send(400, {"error": "the upload broke off"})
        return
    assert hashlib.sha256(body).hexdigest() == digest
    handler.hub.objects[digest] = body
    handler.send(200, {})


def commit(handler: Handler, body: bytes, name: str) -> None:
    files = handler.hub.repositories[name].files
    for row in map(json.loads, body.splitlines()):
        value = row["value"]
        if row["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif row["key"] == "lfsFile":
            files[value["path"]] = handler.hub.objects[value["oid"]]
        else:
            assert row["key"] == "header"
    handler.send(200, {"commitUrl": f"{handler.hub.endpoint}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40})


CALLS: dict[str, Any] = {
    "POST /api/validate-yaml": validate,
    "GET /api/models/([^/]+/[^/]+)": info,
    "POST /api/repos/create": create,
    "POST /api/models/([^/]+/[^/]+)/preupload/main": preupload,
    r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": batch,
    "PUT /objects/([0-9a-f]{64})": objects,
    "POST /api/models/([^/]+/[^/]+)/commit/main": commit,
}
