"""Small audio files for the tests: a tone with noise, in every format libsndfile writes."""

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from sordino.data.clip import Clip

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> NDArray[np.float32]:
    """(n,), a sine with a little noise, the same on every call."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * hertz * time) + 0.02 * noise).astype(np.float32)


def save(path: Path, samples: NDArray[np.float32], rate: int = 16_000, subtype: str | None = None) -> Path:
    """Write samples in the format that the suffix names."""
    container, usual = FORMATS[path.suffix[1:]]
    soundfile.write(path, samples, rate, format=container, subtype=subtype or usual)
    return path


def keep(path: Path, share: float) -> Path:
    """Cut a file to the first `share` of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def clip(name: str, audio: str | Path = "/audio/a.wav", **fields: object) -> Clip:
    """A clip with what is not given filled in."""
    record = {"id": name, "audio": str(audio), "source_lang": "en", "target_lang": "de", "target_text": "Hallo."}
    return Clip.from_json(record | fields)
