"""What translating endpoints share: a place in the queue, a directory for the upload, an end when the client goes."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sordino.serve import responses
from sordino.serve.errors import ApiError, as_api_error
from sordino.serve.service import Segment, Service, Work

Result = TypeVar("Result")

Handler = Callable[[Request, Service, Path], Awaitable[Response]]


class Endpoint:
    """An ASGI application around a handler, which gets a directory that is removed once the answer is sent."""

    def __init__(self, handler: Handler, service: Service) -> None:
        self.handler, self.service = handler, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        with self.service.admitted(), tempfile.TemporaryDirectory(prefix="sordino-") as directory:
            response = await self.handler(request, self.service, Path(directory))
            await response(scope, receive, send)


async def all_segments(request: Request, service: Service, work: Work) -> list[Segment]:
    """The translation of a whole file. Raises ClientDisconnect, and stops the work, where the client has gone."""

    async def collect() -> list[Segment]:
        return [segment async for segment in service.segments(work)]

    return await _while_connected(request, collect())


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def event_stream(events: AsyncIterator[dict[str, Any]]) -> Response:
    """Server-sent events; what fails after the first is an event too, in the shape of an error."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for content in events:
                yield responses.event(content)
        except Exception as error:
            told = as_api_error(error)
            yield responses.event(told.to_json())
            if told.code == "internal_error":  # for the log
                raise
        else:
            yield responses.DONE

    return StreamingResponse(lines(), media_type=responses.EVENTS, headers={"cache-control": "no-cache"})


def is_given(value: object) -> bool:
    return value not in (None, "")


def refuse_unknown(given: object, known: frozenset[str], where: str = "") -> None:
    """Raise ApiError for a field that would be left unused."""
    for name in given if isinstance(given, dict) else ():
        if name not in known:
            message = f"The field {str(name)[:60]!r} is not supported here."
            raise ApiError(400, message, param=f"{where}{str(name)[:60]}", code="unsupported_parameter")


def refuse_sampling(value: object) -> None:
    """Raise ApiError for a temperature other than 0."""
    if not is_given(value):
        return
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number != 0:
        raise ApiError(400, "Decoding is greedy: temperature must be 0.", param="temperature", code="unsupported_value")


def flag(value: object, param: str) -> bool:
    """A yes or no of a form or of JSON. Raises ApiError."""
    if isinstance(value, bool) or value is None:
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "1", "false", "0", ""):
        return value.lower() in ("true", "1")
    raise ApiError(400, f"{param} must be true or false.", param=param, code="invalid_value")
