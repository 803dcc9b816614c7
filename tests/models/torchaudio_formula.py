"""torchaudio.transforms.MelSpectrogram by its documentation, for the stock extractor where torchaudio is not installed.

Periodic Hann window, reflected borders, power 2, not normalized; triangular filters at HTK mel frequencies, no norm.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor


class MelSpectrogram:
    def __init__(self, sample_rate: int, n_fft: int, win_length: int, hop_length: int, n_mels: int) -> None:
        self.n_fft, self.win_length, self.hop_length = n_fft, win_length, hop_length
        highest = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700))
        corners = 700 * (10 ** (torch.linspace(0, float(highest), n_mels + 2) / 2595) - 1)  # Hz
        distances = corners[None] - torch.linspace(0, sample_rate // 2, n_fft // 2 + 1)[:, None]
        widths = corners[1:] - corners[:-1]
        falling, rising = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
        self.filters = torch.minimum(falling, rising).clamp(min=0)  # (bins, mels)

    def to(self, _: Any) -> MelSpectrogram:
        return self

    def __call__(self, waves: Tensor) -> Tensor:
        """(B, n) -> (B, mels, frames)."""
        window = torch.hann_window(self.win_length, periodic=True)
        spectrum = torch.stft(
            waves, self.n_fft, self.hop_length, self.win_length, window, center=True, pad_mode="reflect",
            normalized=False, onesided=True, return_complex=True,
        )  # fmt: skip
        return (spectrum.abs().pow(2).transpose(-1, -2) @ self.filters).transpose(-1, -2)


def stock_extractor(mels: int) -> Any:
    """transformers' GraniteSpeechFeatureExtractor, with torchaudio itself where it is installed."""
    from transformers.models.granite_speech import feature_extraction_granite_speech as module

    if not module.is_torchaudio_available():
        module.requires_backends = lambda *_: None
        module.torchaudio = types.SimpleNamespace(transforms=types.SimpleNamespace(MelSpectrogram=MelSpectrogram))
    return module.GraniteSpeechFeatureExtractor(n_mels=mels)
