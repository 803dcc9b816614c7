"""A translation in OpenAI's five formats, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from sordino.languages import has_spaces, language_name
from sordino.serve.service import Segment, Work

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
DONE = "data: [DONE]\n\n"
EVENTS = "text/event-stream"


def one_line(text: str) -> str:
    return " ".join(text.split())


def space(target: str) -> str:
    """What stands between two segments' texts in a language."""
    return " " if has_spaces(target) else ""


def delta(before: str, segment: Segment, work: Work) -> str:
    """What a segment adds to the text before it. The only segment's text is as the model gave it."""
    text = segment.answer.text if len(work.clips) == 1 else one_line(segment.answer.text)
    return (space(work.question.target) if before and text else "") + text


def joined(segments: Sequence[Segment], work: Work) -> str:
    """The text of a whole file."""
    text = ""
    for segment in segments:
        text += delta(text, segment, work)
    return text


def response(kind: str, work: Work, segments: Sequence[Segment], milliseconds: int) -> Response:
    """The answer in one of FORMATS. The header openai-processing-ms is OpenAI's."""
    headers = {"openai-processing-ms": str(milliseconds)}
    text = joined(segments, work)
    if kind == "text":
        return PlainTextResponse(text + "\n", headers=headers)
    if kind == "srt":
        return PlainTextResponse(srt(segments), headers=headers)
    if kind == "vtt":
        return Response(vtt(segments), media_type="text/vtt", headers=headers)
    content: dict[str, Any] = {"text": text}
    if kind == "verbose_json":
        language = language_name(work.question.target).lower()
        content = {"task": "translate", "language": language, "duration": round(work.duration, 3), "text": text}
        content["segments"] = [
            {
                "id": s.id,
                "start": s.start,
                "end": s.end,
                "text": s.answer.text,
                "tokens": list(s.answer.tokens),
                "temperature": 0.0,
            }
            for s in segments
        ]
    content["usage"] = {"type": "duration", "seconds": round(work.duration, 3)}
    return JSONResponse(content, headers=headers)


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered cues, a blank line between; segments without text are left out."""
    shown = [(s, text) for s in segments if (text := _cue(s))]
    return "\n".join(f"{n}\n{_times(s, ',')}\n{text}\n" for n, (s, text) in enumerate(shown, start=1))


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (w3.org/TR/webvtt1)."""
    escapes = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    cues = (f"\n{_times(s, '.')}\n{text.translate(escapes)}\n" for s in segments if (text := _cue(s)))
    return "WEBVTT\n" + "".join(cues)


def _cue(segment: Segment) -> str:
    """One line that cannot be taken for a cue's times."""
    return one_line(segment.answer.text).replace("-->", "→")


def _times(segment: Segment, point: str) -> str:
    return f"{_clock(segment.start, point)} --> {_clock(segment.end, point)}"


def _clock(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
