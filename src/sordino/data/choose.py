"""Which clips of a corpus to take: not too short or long, not badly aligned, and a seeded sample of what is left.

Lengths come from the table or, where it has none, from the header of the audio file; nothing is decoded. A clip whose
header cannot be read is kept: the audio check says what is wrong with it.
"""

import math
import random
import statistics
from collections.abc import Sequence

import soundfile

from sordino.data.clip import Clip


def choose(
    clips: Sequence[Clip],
    rows: int | None,
    seed: int,
    *,
    min_seconds: float | None = None,
    max_seconds: float | None = None,
    max_ratio: float | None = None,
) -> list[Clip]:
    """Up to `rows` clips that pass, in the corpus's order.

    max_ratio: how many times longer or shorter than usual a translation may be for its transcript. What is usual for
    the two languages is the corpus's own median of characters per character. Clips without a transcript pass.
    """
    candidates = [clips[i] for i in _matching(clips, max_ratio)] if max_ratio is not None else clips
    if min_seconds is None and max_seconds is None:
        if rows is None or rows >= len(candidates):
            return list(candidates)
        return [candidates[i] for i in sorted(random.Random(seed).sample(range(len(candidates)), rows))]
    # Headers are read only until there are enough clips: of 300,000, 100,000 are opened and not all.
    order = (
        random.Random(seed).sample(range(len(candidates)), len(candidates))
        if rows is not None
        else range(len(candidates))
    )
    taken: list[int] = []
    for i in order:
        if rows is not None and len(taken) >= rows:
            break
        seconds = _seconds(candidates[i])
        if seconds is None or (min_seconds or 0.0) <= seconds <= (max_seconds or math.inf):
            taken.append(i)
    return [candidates[i] for i in sorted(taken)]


def _matching(clips: Sequence[Clip], max_ratio: float) -> list[int]:
    """Places of the clips whose texts match in length."""
    ratios = [_ratio(clip) for clip in clips]
    measured = [ratio for ratio in ratios if ratio is not None]
    usual = statistics.median(measured) if measured else 1.0
    return [i for i, ratio in enumerate(ratios) if ratio is None or usual / max_ratio <= ratio <= usual * max_ratio]


def _ratio(clip: Clip) -> float | None:
    if not clip.source_text or clip.target_text is None:
        return None
    return len(clip.target_text) / len(clip.source_text)


def _seconds(clip: Clip) -> float | None:
    if clip.seconds is not None:
        return clip.seconds
    try:
        info = soundfile.info(clip.audio)
    except (soundfile.SoundFileError, OSError, TypeError):
        return None
    return float(info.duration) - clip.start
