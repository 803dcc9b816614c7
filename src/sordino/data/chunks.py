"""What is to be translated of long recordings: segments by a given list or whole recordings, and the pieces of both.

A segment owes one line of output; a piece is what the model hears at once. Most segments are one piece. A recording, or
a listed segment that is longer than the model's window, is cut by voice activity (voice.py) and never in any other way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sordino.data import audio, voice
from sordino.data.clip import MIN_SECONDS, Clip
from sordino.data.corpora import segments
from sordino.data.corpora.base import Rows
from sordino.errors import DataError

SHOWN = 10  # problems that an error lists


@dataclass(frozen=True)
class Chunk:
    """clip: the stretch, with its length; segment: id of the segment it is of; problem: why it is not translated."""

    clip: Clip
    segment: str
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"clip": self.clip.to_json(), "segment": self.segment, "problem": self.problem}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Chunk:
        return cls(Clip.from_json(record["clip"]), record["segment"], record["problem"])


def recordings(files: Sequence[str | Path], languages: tuple[str, str]) -> list[Clip]:
    """Whole files as segments, named by their stems. Raises DataError for all that cannot be used, at once."""
    rows = Rows()
    for file in files:
        path = Path(file).absolute()

        def make(path: Path = path) -> Clip:
            return Clip(path.stem, str(path), audio.duration(path), *languages, group=path.stem)

        rows.add(path.stem, "", make)
    _refuse([problem.problem for problem in rows.problems])
    return list(rows.clips.values())


def listed(
    file: Path, folders: Sequence[Path], languages: tuple[str, str], only: Iterable[str | Path] | None = None
) -> list[Clip]:
    """The segments of a YAML list, in its order; recordings are looked for in `folders`.

    only: the recordings that are wanted, each of which must be listed; segments of others are left out.
    Raises DataError for every segment that is unreadable, ends after its recording, or names none, all at once.
    """
    rows = Rows()
    segments.read(rows, file, (None, None), list(dict.fromkeys(folders)), languages)
    problems = [problem.problem for problem in rows.problems]
    clips = list(rows.clips.values())
    if only is not None:
        wanted = {Path(one).absolute() for one in only}
        clips = [clip for clip in clips if Path(clip.audio).absolute() in wanted]
        unlisted = sorted(wanted - {Path(clip.audio).absolute() for clip in clips})
        problems += [f"{file} lists no segments of {path}." for path in unlisted]
    lengths: dict[str, float] = {}
    for clip in clips:
        assert clip.seconds is not None
        try:
            if clip.audio not in lengths:
                lengths[clip.audio] = audio.duration(clip.audio)
        except DataError as error:
            lengths[clip.audio] = float("inf")  # told once
            problems.append(str(error))
        if clip.start + clip.seconds > lengths[clip.audio] + audio.END_TOLERANCE:
            end = clip.start + clip.seconds
            problems.append(f"{clip.id} ends at {end:.2f} s, and {clip.audio} at {lengths[clip.audio]:.2f} s.")
    _refuse(problems)
    return clips


def pieces(
    clips: Sequence[Clip], window: float, pause: float, advance: Callable[[float], None] = lambda _: None
) -> list[Chunk]:
    """What the model hears, in order. window: seconds it hears at once; pause: see voice.split.

    advance: is told the seconds of audio that were listened to. Raises DataError for a segment beyond the window
    without the extra `vad`.
    """
    refuse_long(clips, window)
    found: list[Chunk] = []
    for clip in clips:
        assert clip.seconds is not None
        if clip.seconds < MIN_SECONDS:
            said = f"{clip.seconds:.3f} s long, {MIN_SECONDS:g} s is the minimum"
            found.append(Chunk(clip, clip.id, said))
        elif clip.seconds <= window:
            found.append(Chunk(clip, clip.id))
        else:
            parts = voice.split(clip.audio, window, pause, clip.start, clip.seconds, advance)
            if not parts:
                found.append(Chunk(clip, clip.id, "no speech was found"))
            for number, (start, seconds) in enumerate(parts):
                part = replace(clip, id=f"{clip.id}_{number}", start=round(start, 4), seconds=round(seconds, 4))
                found.append(Chunk(part, clip.id))
    return found


def refuse_long(clips: Sequence[Clip], window: float) -> None:
    """Raise DataError for segments beyond the window, in seconds, where nothing is installed that could cut them."""
    long = [clip for clip in clips if (clip.seconds or 0.0) > window]
    if long and not voice.available():
        more = f" (and {len(long) - 1} more)" if len(long) > 1 else ""
        raise voice.missing(
            f"{long[0].id}{more} is {long[0].seconds:.1f} s long, and the model hears {window:g} s at once."
        )


def _refuse(problems: list[str]) -> None:
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError("\n".join(problems[:SHOWN]) + more)
