"""From clips to texts: audio is encoded, then translated, a batch at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from sordino.data.audio import Waveform
from sordino.data.clip import Clip
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import Decoding, Hypothesis, translate


def encode_and_translate(
    features: Features, clips: Sequence[Clip], prompt: str, options: Decoding, waves: Sequence[Waveform] | None = None
) -> list[tuple[EncodedClip, Hypothesis]]:
    """One batch of clips, in order. waves: (n,) each, where the audio has been read; else it is read from its files.

    seconds of a hypothesis: its share of the batch's time, the audio encoder included. Raises DataError for a clip that
    cannot be read or is longer than the model's window.
    """
    start = time.perf_counter()
    if waves is None:
        encoded = list(features.encode_each(clips, prompt))
    else:
        encoded = list(features.encode_waveforms(clips, waves, prompt))
    share = (time.perf_counter() - start) / len(clips)
    hypotheses = translate(features.speech, encoded, options)
    timed = [dataclasses.replace(h, seconds=h.seconds + share) for h in hypotheses]
    return list(zip(encoded, timed, strict=True))
