"""POST /v1/chat/completions: one user message with one `input_audio`; its text is what the model is asked to do."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sordino.serve import responses, uploads
from sordino.serve.decoding import Question
from sordino.serve.endpoint import all_segments, event_stream, flag, is_given, refuse_sampling, refuse_unknown
from sordino.serve.errors import ApiError
from sordino.serve.service import Segment, Service, Work

FIELDS = frozenset(
    {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n"}
    | {"language", "to_language"}  # as in translations
    | {"user", "seed", "store", "metadata"}  # change nothing here
)
MAX_TEXT = 2000  # characters of an instruction
MAX_TURNS = 2  # a system message and a user message


@dataclass(frozen=True)
class Said:
    """What a request's messages hold."""

    audio: Any
    instruction: str | None
    system: str | None


async def completions(request: Request, service: Service, directory: Path) -> Response:
    """Raises ApiError."""
    body = await uploads.read_json(request, service.settings)
    refuse_unknown(body, FIELDS)
    entry = service.entry(body.get("model"))
    source, target = service.languages(entry, body.get("language"), body.get("to_language"))
    refuse_sampling(body.get("temperature"))
    if body.get("n") not in (None, 1):
        raise ApiError(400, "n must be 1: decoding is greedy.", param="n", code="unsupported_value")
    stream, counted = flag(body.get("stream"), "stream"), _counted(body.get("stream_options"))
    asked = parse(body.get("messages"))
    question = Question(source, target, _limit(body, service), asked.instruction, asked.system)
    file, name = await asyncio.to_thread(uploads.save_base64, asked.audio, directory, service.settings)
    work = await service.accept(entry, question, file, name)
    if stream:
        return event_stream(_chunks(service, work, counted))
    segments = await all_segments(request, service, work)
    message = {"role": "assistant", "content": responses.joined(segments, work), "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": _reason(segments), "logprobs": None}
    content = _head(work, "chat.completion") | {"choices": [choice], "usage": _usage(segments)}
    return JSONResponse(content, headers={"openai-processing-ms": str(service.finished(work))})


def parse(messages: object) -> Said:
    """Raises ApiError for anything but an optional system message and one user message with one input_audio."""
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_TURNS:
        raise _wrong("messages must hold one user message, with a system message before it or none")
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    if roles not in (["user"], ["system", "user"], ["developer", "user"]):
        raise _wrong("messages must hold one user message, with a system message before it or none")
    system = _text(messages[0].get("content")) if len(messages) == MAX_TURNS else None
    parts = messages[-1].get("content")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise _wrong("the user message's content must be a list of parts, one of them input_audio")
    audio = [part.get("input_audio") for part in parts if part.get("type") == "input_audio"]
    texts = [part for part in parts if part.get("type") == "text"]
    if len(audio) != 1 or len(audio) + len(texts) != len(parts):
        raise _wrong("the user message must hold exactly one input_audio, and else parts of type text")
    if not isinstance(audio[0], dict) or not isinstance(audio[0].get("data"), str):
        raise _wrong("input_audio must be {data, format}, with the file's bytes in base64")
    instruction = "\n".join(filter(None, (_text(part.get("text")) for part in texts)))
    return Said(audio[0]["data"], instruction or None, system)


def _text(content: object) -> str | None:
    """A text, or parts of type text."""
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "\n".join(filter(None, (_text(part.get("text")) for part in content))) or None
    if not isinstance(content, str):
        raise _wrong("a text is missing, or is no string")
    if len(content) > MAX_TEXT:
        raise _wrong(f"a text is longer than {MAX_TEXT:,} characters")
    return content.strip() or None


def _wrong(problem: str) -> ApiError:
    return ApiError(400, f"{problem[0].upper()}{problem[1:]}.", param="messages", code="invalid_messages")


def _limit(body: dict[str, Any], service: Service) -> int:
    """Tokens of a segment's answer. Raises ApiError."""
    most = service.settings.max_new_tokens
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise ApiError(400, f"{name} must be a whole number from 1 to {most}.", param=name, code="invalid_value")
        return value
    return most


def _counted(options: object) -> bool:
    """Whether a stream ends with the tokens used."""
    if not is_given(options):
        return False
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options must be an object.", param="stream_options", code="invalid_value")
    refuse_unknown(options, frozenset({"include_usage"}), "stream_options.")
    return flag(options.get("include_usage"), "stream_options.include_usage")


async def _chunks(service: Service, work: Work, counted: bool) -> AsyncIterator[dict[str, Any]]:
    """A chunk for every segment, as OpenAI streams them."""
    head = _head(work, "chat.completion.chunk")
    segments: list[Segment] = []

    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return head | {"choices": [choice]} | ({"usage": None} if counted else {})

    yield chunk({"role": "assistant", "content": ""})
    async for segment in service.segments(work):
        delta = responses.delta(responses.joined(segments, work), segment, work)
        segments.append(segment)
        yield chunk({"content": delta})
    yield chunk({}, _reason(segments))
    service.finished(work)
    if counted:
        yield head | {"choices": [], "usage": _usage(segments)}


def _head(work: Work, kind: str) -> dict[str, Any]:
    identity = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": work.entry.id}


def _reason(segments: Sequence[Segment]) -> str:
    return "length" if any(segment.answer.cut for segment in segments) else "stop"


def _usage(segments: Sequence[Segment]) -> dict[str, int]:
    prompt = sum(segment.answer.prompt_tokens for segment in segments)
    generated = sum(len(segment.answer.tokens) for segment in segments)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
