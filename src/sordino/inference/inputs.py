"""Audio as the Python API takes it, files, samples and clips mixed, as clips that a model can be asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sordino.data.audio import Waveform, duration, from_samples
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import DataError, UsageError

SHOWN = 10  # problems that an error lists


@dataclass(frozen=True)
class Inputs:
    """clips: in the order given; waves: samples (n,), 16,000 Hz, of those that are in no file, by index."""

    clips: tuple[Clip, ...]
    waves: dict[int, Waveform]


def read(audio: Sequence[Any], rate: float | None, languages: tuple[str, str], window: float) -> Inputs:
    """Clips of files, samples and clips. rate: of the samples, Hz; window: seconds that samples may have.

    A file is a clip of its whole length, named by its stem; samples are named by their place. Raises DataError for
    all that cannot be used, at once, and UsageError for samples without a rate.
    """
    clips: list[Clip] = []
    waves: dict[int, Waveform] = {}
    problems = []
    for i, item in enumerate(audio):
        try:
            if isinstance(item, Clip):
                clips.append(item)
            elif isinstance(item, (str, Path)):
                path = Path(item).absolute()
                clips.append(Clip(path.stem, str(path), duration(path), *languages))
            elif rate is None:
                raise UsageError("samples need their rate.", "Say which, in Hz: rate=16_000.")
            else:
                waves[i] = from_samples(np.asarray(item), rate, f"audio {i}", max_seconds=window)
                clips.append(Clip(str(i), f"audio {i}", len(waves[i]) / SAMPLE_RATE, *languages))
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError("\n".join(problems[:SHOWN]) + more)
    return Inputs(tuple(clips), waves)


def languages_in(audio: Sequence[Any]) -> tuple[str | None, str | None]:
    """Source and target of the clips among it; None where there are none, or they do not agree."""
    clips = [item for item in audio if isinstance(item, Clip)]
    pairs = {clip.source_lang for clip in clips}, {clip.target_lang for clip in clips}
    source, target = (next(iter(names)) if len(names) == 1 else None for names in pairs)
    return source, target
