"""The server as an ASGI application: routes, the gate before them, loading and shutting down."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sordino.errors import SordinoError
from sordino.serve import metrics
from sordino.serve.chat import completions
from sordino.serve.endpoint import Endpoint
from sordino.serve.errors import ApiError, error_response, handle
from sordino.serve.service import LOADING_SECONDS, Service
from sordino.serve.translations import transcriptions, translations

OPEN = ("/", "/health")  # paths that need no key: neither holds anything
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
DRAIN_SECONDS = 1.0
DRAIN_TIMES = 4  # as much as the largest file, of a body that was refused before it was read
HANDLED = (ApiError, HTTPException, SordinoError, ClientDisconnect, MemoryError)


def application(service: Service) -> Starlette:
    """The ASGI application of a service; its models are loaded while it already answers /health."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        work = asyncio.create_task(service.run())
        try:
            yield
        finally:  # the requests are answered by now
            service.close()
            if not service.ready:
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            service.release()

    html = resources.files("sordino.serve").joinpath("page.html").read_text(encoding="utf-8")

    async def page(_: Request) -> Response:
        return HTMLResponse(html, headers={"content-security-policy": policy(html)})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [entry.to_json() for entry in service.entries]})

    async def model(request: Request) -> Response:
        return JSONResponse(service.entry(request.path_params["name"]).to_json())

    async def health(_: Request) -> Response:
        if service.ready:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "loading"}, 503, headers={"retry-after": str(LOADING_SECONDS)})

    async def numbers(_: Request) -> Response:
        service.metrics.set("sordino_models_loaded", len(service.models))
        return PlainTextResponse(service.metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})

    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/metrics", numbers),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/audio/translations", Endpoint(translations, service), methods=["POST"]),
        Route("/v1/audio/transcriptions", Endpoint(transcriptions, service), methods=["POST"]),
        Route("/v1/chat/completions", Endpoint(completions, service), methods=["POST"]),
    ]
    paths = frozenset(route.path for route in routes)
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=dict.fromkeys((*HANDLED, Exception), handle))
    app.add_middleware(Gate, service=service, paths=paths)
    return app


class Gate:
    """Before everything else the key, and whose page is asking; after it what is counted and said with every answer."""

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        self.app, self.service, self.paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        body = Body(scope, receive, DRAIN_TIMES * self.service.settings.max_file_bytes)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.service.metrics.add("sordino_requests_total", path=path, status=str(message["status"]))
                await body.drain()
                more = [(b"x-content-type-options", b"nosniff")]
                if not body.read:  # the rest may never come, or never end
                    more.append((b"connection", b"close"))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        refusal = self._refusal(Request(scope))
        if refusal is None:
            await self.app(scope, body.receive, sent)
        else:
            await error_response(refusal)(scope, body.receive, sent)

    def _refusal(self, request: Request) -> ApiError | None:
        settings, host = self.service.settings, request.headers.get("host", "")
        try:
            if settings.local and urlsplit(f"//{host}").hostname not in LOCAL_NAMES:
                # another name that was made to point here, so that a page of its owner may read the answers
                return ApiError(403, f"This server is not {host[:80]!r}.", code="wrong_host")
            origin = request.headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return ApiError(403, "Pages of other origins may not use this server.", code="origin")
        except ValueError:
            return ApiError(400, "The Host or Origin header is malformed.", code="wrong_host")
        if settings.api_key is None or request.scope["path"] in OPEN:
            return None
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), settings.api_key.encode()):
            return None
        said = "A key is needed: Authorization: Bearer KEY."
        headers = {"www-authenticate": "Bearer"}
        return ApiError(401, said, code="invalid_api_key", headers=headers)


class Body:
    """A request's body on its way. read: to its end, or the client has gone."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        self.read = declared == b"0" and b"transfer-encoding" not in headers
        # a client that asks whether it may send has sent nothing yet
        self.drained = b"expect" not in headers and declared.isdigit() and int(declared) <= limit
        self.limit, self._receive = limit, receive

    async def receive(self) -> Message:
        message = await self._receive()
        self.read = self.read or not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Throw the rest away for a moment: closed with bytes on the way, a connection loses the answer."""
        room = self.limit if self.drained else 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self.read and room > 0:
                    room -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


def policy(html: str) -> str:
    """Content-Security-Policy of the page: its own script and style, this server, and nothing else."""

    def hashed(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    parts = {
        "default-src": "'none'",
        "script-src": f"{hashed('script')} blob:",  # the recorder runs in a thread of its own, made from the page
        "style-src": hashed("style"),
        "connect-src": "'self'",
        "media-src": "blob:",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())
