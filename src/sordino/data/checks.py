"""Decode every clip once before anything expensive runs, and list all that cannot be used."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from sordino.data.audio import load_clip
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import DataError


@dataclass(frozen=True)
class BadClip:
    """A clip that cannot be used: which, why, and what to do about it."""

    id: str
    audio: str
    problem: str
    remedy: str


def check_audio(
    clips: Iterable[Clip], on_progress: Callable[[int], None] | None = None
) -> tuple[list[Clip], list[BadClip]]:
    """Split clips into those that decode, with their true `seconds`, and those that do not, in order.

    on_progress: called after each clip with the number of clips seen so far. Never stops at a bad clip.
    """
    good: list[Clip] = []
    bad: list[BadClip] = []
    for seen, clip in enumerate(clips, start=1):
        try:
            seconds = len(load_clip(clip)) / SAMPLE_RATE
        except DataError as error:
            bad.append(BadClip(clip.id, clip.audio, error.problem, error.remedy))
        else:
            # A stated length that is right to the sample stays as it was written.
            stated = clip.seconds is not None and abs(clip.seconds - seconds) <= 1 / SAMPLE_RATE
            good.append(clip if stated else replace(clip, seconds=seconds))
        if on_progress is not None:
            on_progress(seen)
    return good, bad
