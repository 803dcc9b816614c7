"""Errors as OpenAI's API gives them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from sordino.errors import SordinoError, is_out_of_memory


class ApiError(Exception):
    """A request that is refused. param: the field at fault; code: a name that programs can compare."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def type(self) -> str:
        if self.status >= 500:
            return "server_error"
        return "rate_limit_error" if self.status == 429 else "invalid_request_error"


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an exception. Anything that is not the request's fault is a 5xx without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):  # no such path, no such method, a form that cannot be parsed
        return ApiError(error.status_code, error.detail, headers=error.headers)
    if isinstance(error, SordinoError):  # what a request may be wrong in was told as ApiError before
        return ApiError(503, str(error), code="cannot_translate")
    if isinstance(error, ClientDisconnect):  # nobody reads it
        return ApiError(400, "The client closed the connection.", code="disconnected")
    if is_out_of_memory(error):
        return ApiError(
            503, "The server ran out of memory; start it with a smaller --batch-size.", code="out_of_memory"
        )
    return ApiError(500, "The server failed; its log says why.", code="internal_error")


def error_response(error: BaseException) -> Response:
    told = as_api_error(error)
    return JSONResponse(told.to_json(), told.status, headers=told.headers)


async def handle(_: Request, error: Exception) -> Response:
    """Starlette's exception handler for all of them."""
    return error_response(error)
