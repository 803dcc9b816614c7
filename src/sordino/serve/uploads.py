"""What a request brings: its body within limits, its audio in a file of its own, cut into what a model hears at once.

Nothing is believed: bytes are counted whatever Content-Length says, the length of the audio is read from the file, and
a file whose samples would fill the memory is refused by its header. No URL is fetched, no other program is run.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import soundfile
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.types import Message

from sordino.data import audio, chunks, voice
from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.serve.errors import ApiError
from sordino.serve.settings import Settings

Result = TypeVar("Result")

OTHER_BYTES = 2**16  # of a form beside its file, of a JSON body beside its audio
MAX_FIELDS = 32
BASE64_GROWTH = 4 / 3


def bounded(request: Request, limit: int) -> Request:
    """The request, whose body raises ApiError 413 once more than `limit` bytes have come."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise too_large(limit)
        return message

    return Request(request.scope, receive)


def refuse_large(request: Request, limit: int) -> None:
    """Raise ApiError 413 for a body that says that it is too large."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal():
        raise ApiError(400, f"Content-Length is {declared[:40]!r}.")
    if int(declared) > limit:
        raise too_large(limit)


def too_large(limit: int) -> ApiError:
    message = f"The request is larger than {limit / 2**20:.1f} MiB."
    return ApiError(413, message, param="file", code="file_too_large")


async def in_time(work: Awaitable[Result], settings: Settings) -> Result:
    """Raises ApiError 408 where the body takes too long to arrive."""
    try:
        async with asyncio.timeout(settings.upload_seconds):
            return await work
    except TimeoutError:
        message = f"The request's body did not arrive within {settings.upload_seconds:g} s."
        raise ApiError(408, message, code="upload_timeout") from None


async def read_form(request: Request, settings: Settings) -> FormData:
    """A multipart form with at most one file. Raises ApiError."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(400, "Send a form: Content-Type: multipart/form-data.", code="invalid_body")
    limit = settings.max_file_bytes + OTHER_BYTES
    refuse_large(request, limit)
    form = bounded(request, limit).form(max_files=1, max_fields=MAX_FIELDS, max_part_size=OTHER_BYTES)
    try:
        parsed = await in_time(form, settings)
    except ValueError as error:  # also what codecs say of the charsets that a form may name
        raise ApiError(400, "The form cannot be parsed.", code="invalid_body") from error
    names = [name for name, _ in parsed.multi_items()]
    for name in names:
        if names.count(name) > 1 and not name.endswith("[]"):
            raise ApiError(400, f"The field {name[:60]!r} is given twice.", param=name[:60], code="invalid_body")
    return parsed


async def read_json(request: Request, settings: Settings) -> dict[str, Any]:
    """A JSON object. Raises ApiError."""
    limit = round(settings.max_file_bytes * BASE64_GROWTH) + OTHER_BYTES
    refuse_large(request, limit)
    body = await in_time(bounded(request, limit).body(), settings)
    try:
        parsed = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ApiError(400, "The body is not a JSON object.", code="invalid_body")
    return parsed


def save(upload: object, directory: Path, settings: Settings) -> tuple[Path, str]:
    """A form's file -> (where it lies now, its name for messages). Raises ApiError for a field that is no file."""
    if not isinstance(upload, UploadFile):
        raise ApiError(400, "The field 'file' must hold an audio file.", param="file", code="missing_file")
    if (upload.size or 0) > settings.max_file_bytes:
        raise too_large(settings.max_file_bytes)
    path = directory / "audio"
    with path.open("wb") as out:
        shutil.copyfileobj(upload.file, out)
    return path, shown(upload.filename or "the file")


def save_base64(data: object, directory: Path, settings: Settings) -> tuple[Path, str]:
    """As `save`, for audio inside JSON."""
    try:
        decoded = base64.b64decode(data if isinstance(data, str) else "?", validate=True)
    except (binascii.Error, ValueError):
        message = "input_audio.data must be an audio file in base64; addresses are not fetched."
        raise ApiError(400, message, param="messages", code="invalid_base64") from None
    if len(decoded) > settings.max_file_bytes:
        raise too_large(settings.max_file_bytes)
    path = directory / "audio"
    path.write_bytes(decoded)
    return path, "the audio"


def shown(name: str) -> str:
    """A file's name as the client gave it, fit for a message: no directories, nothing unprintable, not long."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c for c in last if c.isprintable())[:80] or "the file"


def length(file: Path, name: str, settings: Settings) -> float:
    """Seconds of audio in a file, which must be readable to its end and within the limits. Raises ApiError."""
    seconds = _told(audio.duration, file, name)
    if seconds > settings.max_seconds:
        message = f"{name} is {seconds:.0f} s long, {settings.max_seconds:g} s is the limit."
        raise ApiError(400, message, param="file", code="audio_too_long")
    header = soundfile.info(str(file))
    decoded = int(header.frames) * int(header.channels) * 4
    if decoded > settings.max_decoded_bytes:
        message = (
            f"{name} would fill {decoded / 2**20:.0f} MiB with its samples ({header.channels} channels at "
            f"{header.samplerate} Hz), {settings.max_decoded_bytes / 2**20:.0f} MiB is the limit."
        )
        raise ApiError(400, message, param="file", code="audio_too_large")
    return seconds


def pieces(
    file: Path, name: str, seconds: float, window: float, languages: tuple[str, str], pause: float
) -> list[Clip]:
    """What a model with this window (seconds) hears of a file: all of it, or where voice activity finds speech.

    Every clip says its seconds. Raises ApiError for a long file without the extra `vad`, or in which nobody speaks.
    """
    whole = Clip("audio", str(file), seconds, *languages)
    if seconds <= window:
        return [whole]
    if not voice.available():
        message = (
            f"{name} is {seconds:.1f} s long and the model hears {window:g} s at once. This server cannot cut it: "
            "voice activity detection is not installed (pip install '.[vad]')."
        )
        raise ApiError(501, message, param="file", code="audio_too_long_for_model")
    found = _told(lambda _: chunks.pieces([whole], window, pause), file, name)
    spoken = [piece.clip for piece in found if not piece.problem]
    if not spoken:
        raise ApiError(400, f"{name}: no speech was found.", param="file", code="invalid_audio")
    return spoken


def _told(read: Callable[[Path], Result], file: Path, name: str) -> Result:
    """What `read` makes of the file; its errors name the file as the client does."""
    try:
        return read(file)
    except DataError as error:
        raise rename(error, file, name) from None


def rename(error: DataError, file: Path, name: str) -> ApiError:
    """A DataError about the file on this machine, as the client can be told it."""
    return ApiError(400, str(error).replace(str(file), name), param="file", code="invalid_audio")


def readable(clip: Clip, seconds: float) -> Clip:
    """The clip as the model reads it: a whole file to its end, however its length was rounded."""
    whole = clip.start == 0.0 and clip.seconds == seconds
    return replace(clip, seconds=None) if whole else clip
