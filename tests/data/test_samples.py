"""Samples at hand become what a file of them would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from sordino.data import audio
from sordino.errors import DataError
from tests.data.sounds import tone


def written(file: Path, samples: NDArray[Any], rate: int, subtype: str) -> audio.Waveform:
    soundfile.write(file, samples, rate, subtype=subtype)
    return audio.load(file)


@pytest.mark.parametrize(
    ("kind", "subtype", "scale"),
    [("int16", "PCM_16", 2**15), ("int32", "PCM_32", 2**31), ("float32", "FLOAT", 1), ("float64", "DOUBLE", 1)],
)
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_as_a_file_of_them(
    tmp_path: Path, kind: str, subtype: str, scale: int, rate: int, channels: int
) -> None:
    sound = np.stack([tone(0.5, rate), 0.25 * tone(0.5, rate)], axis=1)[:, :channels]
    samples = (sound * (scale - 1 if scale > 1 else 1)).astype(kind)
    expected = written(tmp_path / "a.wav", samples, rate, subtype)
    wave = audio.from_samples(samples, rate, "samples")
    assert (wave.dtype, wave.shape) == (np.float32, (8000,))
    assert np.abs(wave - expected).max() < 1e-6
    if channels == 1:
        assert np.array_equal(audio.from_samples(samples[:, 0], rate, "samples"), wave)


def test_unsigned_bytes_have_their_middle_at_128() -> None:
    samples = np.array([0, 64, 128, 192, 255] * 800, dtype=np.uint8)
    assert audio.from_samples(samples, 16_000, "samples")[:5].tolist() == [-1.0, -0.5, 0.0, 0.5, 127 / 128]


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros((2, 3, 4)), 16_000, r"x is no audio: float64 of shape \(2, 3, 4\)"),
        (np.array(["a"]), 16_000, "x is no audio"),
        (np.float32(0.5), 16_000, "x is no audio"),
        (tone(0.5), 0, "at 0 Hz"),
        (tone(0.5), float("nan"), "at nan Hz"),
        (tone(0.5)[None], 16_000, r"x has more channels than samples: \(1, 8000\)\. Transpose it"),
        (tone(0.5), 160_000, "x: the clip is 0.050 s long, 0.1 s is the minimum"),
        (tone(5.0), 16_000, "x: the clip is 5.00 s long, 4 s is the limit"),
        (np.zeros(8000), 16_000, "x: the clip is silent: it never rises above -80 dBFS"),
        (np.array([], dtype=np.float32), 16_000, "0.000 s long"),
        (np.full(8000, np.nan), 16_000, "8,000 of 8,000 samples are NaN or infinite"),
    ],
)
def test_what_cannot_be_used(samples: Any, rate: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        audio.from_samples(samples, rate, "x", max_seconds=4)
