"""Where in a long recording someone speaks, in pieces that a model hears whole. Needs the extra `vad` (silero-vad).

The detector (Silero VAD, MIT) is run as ONNX on one CPU thread, 32 ms at a time, over a stream of the file: what stays
in memory of a two-hour talk are its 225,000 probabilities. Its ONNX file is data, whereas its TorchScript file brings
code; and neither torchaudio nor torchcodec is needed, because the audio is read here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sordino.data import audio
from sordino.data.audio import Waveform
from sordino.data.clip import SAMPLE_RATE
from sordino.errors import DataError

FRAME = 512  # samples that the detector judges at once at 16 kHz
PADDING = 0.2  # seconds kept on either side of a piece: speech starts before the detector is sure of it
THRESHOLD = 0.5  # probability from which a frame is speech; silero's own
LIMIT = 0.05  # seconds that a piece stays below the window: a piece is never cut because a number was rounded


def available() -> bool:
    """Whether the extra is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("silero_vad", "onnxruntime"))


def split(
    file: str | Path,
    window: float,
    pause: float,
    start: float = 0.0,
    seconds: float | None = None,
    advance: Callable[[float], None] = lambda _: None,
) -> list[tuple[float, float]]:
    """(start, seconds) of the pieces of a stretch of a file in which someone speaks, in order, none over `window`.

    pause: seconds of silence that end a piece; speech without such a pause is cut at its longest silence before the
    window is full. advance: is told the seconds encoded. Raises DataError for unreadable audio, or without the extra.
    """
    speech, samples = probabilities(audio.stream(file, start, seconds), advance)
    return [
        (start + first / SAMPLE_RATE, (end - first) / SAMPLE_RATE) for first, end in cut(speech, samples, window, pause)
    ]


def probabilities(
    blocks: Iterable[Waveform], advance: Callable[[float], None] = lambda _: None
) -> tuple[list[float], int]:
    """Blocks of samples -> (probability of speech of each 512 samples, number of samples)."""
    import torch

    detector = _silero().load_silero_vad(onnx=True)
    rest: Waveform = np.zeros(0, dtype=np.float32)
    speech: list[float] = []
    samples = 0

    def judge(frame: Waveform) -> None:
        speech.append(float(detector(torch.from_numpy(frame), SAMPLE_RATE)))

    for block in blocks:
        samples += len(block)
        rest = np.concatenate([rest, block])
        whole = len(rest) // FRAME * FRAME
        for first in range(0, whole, FRAME):
            judge(rest[first : first + FRAME])
        rest = rest[whole:]
        advance(len(block) / SAMPLE_RATE)
    if len(rest):
        judge(np.pad(rest, (0, FRAME - len(rest))))
    return speech, samples


def cut(probabilities: Sequence[float], samples: int, window: float, pause: float) -> list[tuple[int, int]]:
    """(first sample, end) of the pieces, each at most `window` seconds long with its padding."""
    speech = _silero().get_speech_timestamps_from_probs(
        probabilities,
        sampling_rate=SAMPLE_RATE,
        threshold=THRESHOLD,
        max_speech_duration_s=window - LIMIT,
        min_silence_duration_ms=round(1000 * pause),
        speech_pad_ms=round(1000 * PADDING),
        audio_length_samples=samples,
    )
    return [(int(each["start"]), int(each["end"])) for each in speech]


def _silero() -> Any:
    """The package. It sets torch to one thread for the whole process when it is imported, which is undone here."""
    if not available():
        raise missing("This audio is longer than the model hears at once.")
    import torch

    threads = torch.get_num_threads()
    package = importlib.import_module("silero_vad")
    torch.set_num_threads(threads)
    return package


def missing(problem: str) -> DataError:
    """What to do about audio that is too long, where the extra is not installed: both ways out."""
    return DataError(
        problem,
        "Give its segments (--segments talk.yaml, a list of {wav, offset, duration}), "
        "or install voice activity detection: pip install '.[vad]'.",
    )
