"""What is to be translated of long recordings: segments by a given list or whole recordings, and the pieces of both.

A segment owes one line of output; a piece is what the model hears at once. Most segments are one piece. A recording, or
a listed segment that is longer than the model's window, is cut by voice activity (voice.py) and never in any other way.
"""

from __future__ import annotations

from collections import Counter
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
    paths = [Path(file).absolute() for file in files]
    problems = [f"{path} is given twice." for path, times in Counter(paths).items() if times > 1]
    clips = []
    for name, path in names_of(list(dict.fromkeys(paths))).items():
        try:
            clips.append(Clip(name, str(path), audio.duration(path), *languages, group=name))
        except DataError as error:
            problems.append(str(error))
    _refuse(problems)
    return clips


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """Name -> path: the stem where it is the only one, else with as many folders, or the suffix, as tell it apart."""
    stems = Counter(path.stem for path in paths)
    names: dict[str, Path] = {}
    for path in paths:
        twins = [other for other in paths if other.stem == path.stem and other != path] if stems[path.stem] > 1 else []
        one, others = path.with_suffix(""), [other.with_suffix("") for other in twins]
        if one in others:
            one, others = path, twins
        depth = next(d for d in range(1, len(one.parts) + 1) if all(o.parts[-d:] != one.parts[-d:] for o in others))
        names["/".join(one.parts[-depth:])] = path
    return names


def listed(
    file: Path, folders: Sequence[Path], languages: tuple[str, str], only: Iterable[str | Path] | None = None
) -> list[Clip]:
    """The segments of a YAML list, in its order; recordings are looked for in `folders`.

    only: the recordings that are to be translated, each of which must be listed; segments of others are left out.
    Raises DataError for every segment that is unreadable, ends after its recording, or names none, all at once.
    """
    rows = Rows()
    segments.read(rows, file, (None, None), list(dict.fromkeys(folders)), languages)
    problems = [problem.problem for problem in rows.problems]
    clips = list(rows.clips.values())
    if only is not None:
        chosen = {Path(one).absolute() for one in only}
        clips = [clip for clip in clips if Path(clip.audio).absolute() in chosen]
        unlisted = sorted(chosen - {Path(clip.audio).absolute() for clip in clips})
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
    chunks: list[Chunk] = []
    taken = {clip.id for clip in clips}  # the first piece of talk_1 is not the segment talk_1_0 of another recording
    for clip in clips:
        assert clip.seconds is not None
        if clip.seconds < MIN_SECONDS:
            problem = f"{clip.seconds:.3f} s long, {MIN_SECONDS:g} s is the minimum"
            chunks.append(Chunk(clip, clip.id, problem))
        elif clip.seconds <= window:
            chunks.append(Chunk(clip, clip.id))
        else:
            parts = voice.split(clip.audio, window, pause, clip.start, clip.seconds, advance)
            if not parts:
                chunks.append(Chunk(clip, clip.id, "no speech was found"))
            for number, (start, seconds) in enumerate(parts):
                name = f"{clip.id}_{number}"
                while name in taken:
                    name += "_piece"
                taken.add(name)
                part = replace(clip, id=name, start=round(start, 4), seconds=round(seconds, 4))
                chunks.append(Chunk(part, clip.id))
    return chunks


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
