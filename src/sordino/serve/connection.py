"""uvicorn, set up for this server: one small protocol, nothing of the client's believed, and an end to slow headers."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sordino.serve.settings import Settings

HEADER_SECONDS = 20.0  # in which a new connection must have sent its first request's header


class Connection(H11Protocol):
    """Closed where no request has begun in time; an idle connection between requests is closed by uvicorn."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def make_server(app: ASGIApp, settings: Settings) -> uvicorn.Server:
    """A server that, told to stop, answers the requests it has."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,  # what goes wrong still reaches stderr
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=round(settings.upload_seconds + settings.timeout) + 1,
    )
    return uvicorn.Server(config)
