"""POST /v1/audio/translations, with OpenAI's fields and vLLM's `to_language`; and what transcriptions are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sordino.serve import responses, uploads
from sordino.serve.decoding import Question
from sordino.serve.endpoint import all_segments, event_stream, flag, is_given, refuse_sampling, refuse_unknown
from sordino.serve.errors import ApiError
from sordino.serve.service import Service, Work

FIELDS = frozenset(
    {"file", "model", "prompt", "response_format", "temperature", "language", "to_language", "stream"}
    | {"timestamp_granularities[]", "seed"}  # greedy decoding gives the same with every seed
)


async def translations(request: Request, service: Service, directory: Path) -> Response:
    """Raises ApiError."""
    form = await uploads.read_form(request, service.settings)
    try:
        fields: dict[str, Any] = dict(form)
        entry = service.entry(fields.get("model"))
        source, target = service.languages(entry, fields.get("language"), fields.get("to_language"))
        kind, stream = _checked(fields, form.getlist("timestamp_granularities[]"))
        file, name = await asyncio.to_thread(uploads.save, fields.get("file"), directory, service.settings)
    finally:
        await form.close()
    question = Question(source, target, service.settings.max_new_tokens)
    work = await service.accept(entry, question, file, name)
    if stream:
        return event_stream(_events(service, work))
    segments = await all_segments(request, service, work)
    return responses.response(kind, work, segments, service.finished(work))


async def transcriptions(request: Request, service: Service, directory: Path) -> Response:
    """These models translate: a client that asks for a transcript must not be given a translation."""
    raise ApiError(400, "The models here translate: POST to /v1/audio/translations.", code="unsupported_task")


def _checked(fields: dict[str, Any], granularities: list[Any]) -> tuple[str, bool]:
    """(response format, whether it is streamed). Raises ApiError for what cannot be done as asked."""
    refuse_unknown(fields, FIELDS)
    if is_given(fields.get("prompt")):
        message = "The models are asked as they were trained to be: leave prompt out."
        raise ApiError(400, message, param="prompt", code="unsupported_parameter")
    refuse_sampling(fields.get("temperature"))
    kind, stream = fields.get("response_format") or "json", flag(fields.get("stream"), "stream")
    if kind not in responses.FORMATS:
        message = f"response_format must be one of {', '.join(responses.FORMATS)}."
        raise ApiError(400, message, param="response_format", code="invalid_value")
    if stream and kind not in ("json", "text"):
        raise ApiError(400, f"{kind} cannot be streamed.", param="stream", code="unsupported_value")
    if any(granularity != "segment" for granularity in granularities):
        message = "There are times of segments, and none of words."
        raise ApiError(400, message, param="timestamp_granularities[]", code="unsupported_value")
    return kind, stream


async def _events(service: Service, work: Work) -> AsyncIterator[dict[str, Any]]:
    """A delta for every segment; together they are the text of the last event."""
    text = ""
    async for segment in service.segments(work):
        delta = responses.delta(text, segment, work)
        if delta:
            text += delta
            yield {"type": "transcript.text.delta", "delta": delta}
    service.finished(work)
    usage = {"type": "duration", "seconds": round(work.duration, 3)}
    yield {"type": "transcript.text.done", "text": text, "usage": usage}
