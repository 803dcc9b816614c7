"""Decode every clip once before anything expensive runs, and list all that cannot be used."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sordino.data.audio import load
from sordino.data.clip import MAX_SECONDS, SAMPLE_RATE, Clip
from sordino.errors import DataError
from sordino.runtime.terminal import quoted


@dataclass(frozen=True)
class BadClip:
    """A clip that cannot be used: which, why, and what to do about it."""

    id: str
    audio: str
    problem: str
    remedy: str


def check_audio(
    clips: Iterable[Clip], on_progress: Callable[[int], None] | None = None, *, window: float = MAX_SECONDS
) -> tuple[list[Clip], list[BadClip]]:
    """Split clips into those that decode, with their true `seconds`, and those that do not, in order.

    on_progress: called after each clip with the number of clips seen so far. window: seconds that the model hears at
    once; longer clips are bad. Never stops at a bad clip.
    """
    good: list[Clip] = []
    bad: list[BadClip] = []
    for seen, clip in enumerate(clips, start=1):
        try:
            seconds = len(load(clip.audio, clip.start, clip.seconds, max_seconds=window)) / SAMPLE_RATE
        except DataError as error:
            bad.append(BadClip(clip.id, clip.audio, error.problem, error.remedy))
        else:
            # A stated length that is right to the sample stays as it was written.
            stated = clip.seconds is not None and abs(clip.seconds - seconds) <= 1 / SAMPLE_RATE
            good.append(clip if stated else replace(clip, seconds=seconds))
        if on_progress is not None:
            on_progress(seen)
    return good, bad


def check_texts(
    clips: Iterable[Clip], control_tokens: Callable[[str], Sequence[str]], fields: Sequence[str] = ("target_text",)
) -> list[BadClip]:
    """Clips whose texts a tokenizer would read control tokens from: an answer's end in its middle, another audio.

    control_tokens: the tokens of a text that the tokenizer takes for its own (models/control_tokens.py). fields: of
    the clip that a model is trained on or asked with; a reference that is only compared may hold anything.
    """
    bad = []
    for clip in clips:
        for field in fields:
            tokens = control_tokens(getattr(clip, field) or "")
            if tokens:
                names = ", ".join(quoted(token, 60) for token in dict.fromkeys(tokens))
                problem = f"{field} holds {names}, which this model's tokenizer takes for a control token."
                bad.append(BadClip(clip.id, clip.audio, problem, "Remove it from the text, or leave the clip out."))
    return bad
