"""One clip: a stretch of audio with its languages, texts, speaker or talk, and where its target came from.

Everything the pipeline reads or writes about speech is a list of these. A clip is validated once, when it is
read (`Clip.from_json`); code that holds a `Clip` trusts it. Units: seconds, and samples at SAMPLE_RATE.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sordino.errors import DataError
from sordino.runtime.terminal import quoted

SAMPLE_RATE = 16_000  # samples per second: what every supported audio tower takes
MAX_SECONDS = 30.0  # the towers' window; feature extractors cut anything beyond it without a word
LONGEST = 1e8  # seconds, three years: beyond it times of samples are no longer whole numbers
MIN_SECONDS = 0.1  # below about 0.07 s Qwen2-Audio gets 0 or 1 audio token and takes a broken path

SHOWN = 12  # names of fields that an error lists

AUTHENTIC = "authentic"  # origin of a target text that people wrote
TEACHER_PREFIX = "teacher:"  # followed by the hash of the teacher that wrote the target text


@dataclass(frozen=True)
class Clip:
    """A stretch of one audio file and what is said in it.

    id: unique in its manifest; joins clips, hypotheses and references.
    audio: absolute path of the file.
    seconds: length of the stretch, or None for "to the end of the file".
    source_text, target_text: transcript and translation, None where unknown.
    start: where the stretch begins, seconds into the file.
    group: talk or speaker; clips of one group never stand in two splits.
    origin: "authentic", or "teacher:<hash>" where a teacher wrote `target_text`.
    """

    id: str
    audio: str
    seconds: float | None
    source_lang: str
    target_lang: str
    source_text: str | None = None
    target_text: str | None = None
    start: float = 0.0
    group: str | None = None
    origin: str = AUTHENTIC

    @classmethod
    def from_json(cls, record: object) -> "Clip":
        """The clip that a manifest line describes; DataError names the field that is missing or wrong."""
        if not isinstance(record, dict):
            raise DataError(f"a clip must be a JSON object, found {type(record).__name__}.")
        unknown = sorted(set(map(str, record)) - set(FIELDS))
        if unknown:
            raise DataError(
                f"unknown field {', '.join(map(quoted, unknown[:SHOWN]))}.", f"A clip has: {', '.join(FIELDS)}."
            )
        missing = [name for name in REQUIRED if record.get(name) is None]
        if missing:
            raise DataError(
                f"missing field {', '.join(map(repr, missing))}.",
                f"It has {', '.join(map(str, [*record][:SHOWN])) or 'none'}.",
            )
        seconds, start = _number(record, "seconds"), _number(record, "start")
        if seconds is not None and seconds <= 0:
            raise DataError(f"'seconds' must be above 0, found {seconds:g}.")
        if start is not None and start < 0:
            raise DataError(f"'start' must not be negative, found {start:g}.")
        audio = _required(record, "audio")
        if not Path(audio).is_absolute():
            raise DataError(f"'audio' must be an absolute path, found {quoted(audio)}.")
        return cls(
            id=_required(record, "id"),
            audio=audio,
            seconds=seconds,
            source_lang=_required(record, "source_lang"),
            target_lang=_required(record, "target_lang"),
            source_text=_text(record, "source_text"),
            target_text=_text(record, "target_text"),
            start=0.0 if start is None else start,
            group=_text(record, "group"),
            origin=_origin(record),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dict in the order of the fields; what is None is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


FIELDS = tuple(field.name for field in fields(Clip))
REQUIRED = ("id", "audio", "source_lang", "target_lang")


def _text(record: Mapping[str, object], name: str) -> str | None:
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{name!r} must be a string, found {type(value).__name__}.")
    try:
        value.encode("utf-8")  # JSON can spell half a surrogate pair, which no UTF-8 file can hold
    except UnicodeEncodeError as error:
        raise DataError(f"{name!r} holds half of a surrogate pair at character {error.start}.") from None
    return value


def _required(record: Mapping[str, object], name: str) -> str:
    value = _text(record, name)
    if value is None or not value.strip():
        raise DataError(f"{name!r} must not be empty.")
    return value


def _number(record: Mapping[str, object], name: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{name!r} must be a number of seconds, found {type(value).__name__}.")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise DataError(f"{name!r} must be a finite number of seconds.")
    if abs(seconds) > LONGEST:
        raise DataError(f"{name!r} is {seconds:g} seconds, longer than any recording.")
    return seconds


def _origin(record: Mapping[str, object]) -> str:
    origin = _text(record, "origin")
    if origin is None or origin == AUTHENTIC:
        return AUTHENTIC
    if not origin.startswith(TEACHER_PREFIX) or origin == TEACHER_PREFIX:
        raise DataError(f"'origin' must be '{AUTHENTIC}' or '{TEACHER_PREFIX}<hash>', found {quoted(origin)}.")
    return origin
