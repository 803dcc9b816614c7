"""How fast a system translates and how much memory it takes, measured around the real decoding loop.

    with Meter("cuda") as meter:
        for batch in batches:
            ...
            meter.add(audio_seconds=sum(clip.seconds for clip in batch), tokens=generated)
    speed = meter.result()

A meter may be entered again and adds up, so that loading, audio decoding and scoring can stay outside.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sordino.errors import DataError

PROCESS_STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


@dataclass(frozen=True)
class Speed:
    """Cost of translating a set of clips.

    seconds: wall clock inside the meter. audio_seconds: length of the clips.
    rtf: real-time factor, processing seconds / audio seconds; below 1 is faster than speech.
    tokens: generated tokens; tokens_per_second over the same wall clock.
    peak_memory_bytes: on CUDA the most that torch's allocator held at once inside the meter, weights included;
    elsewhere the peak resident set of the *whole process*, Python, libraries and everything else it holds
    included. Linux lets the peak be set back, so that it is the peak inside the meter; where that is refused,
    and on macOS, it is the peak since the process started: compare it only between fresh processes.
    device: 'cuda:0', 'cpu', ...
    """

    seconds: float
    audio_seconds: float
    rtf: float
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    device: str

    def to_json(self) -> dict[str, Any]:
        """Plain values that json.dumps takes; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Speed:
        """The Speed that `to_json` wrote."""
        return cls(**record)


def peak_rss_bytes() -> int:
    """Largest resident set of this process, in bytes, since it started or since `reset_peak_rss`.

    Linux: VmHWM, because getrusage's ru_maxrss survives exec and would report a larger parent's peak.
    Elsewhere getrusage (macOS counts in bytes, others in KiB).
    """
    if PROCESS_STATUS.is_file():
        for line in PROCESS_STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_rss() -> bool:
    """Set the peak back to what is resident now (proc(5), clear_refs); False where the system does not allow it."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def release_memory() -> None:
    """Give freed memory back to the system, so that the next peak is not that of what ran before."""
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return


class Meter:
    """Records wall seconds, audio seconds, tokens and peak memory. device: torch's name, 'cpu' or 'cuda:0'."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = str(device)
        self.seconds = 0.0
        self.audio_seconds = 0.0
        self.tokens = 0
        self.peak_memory_bytes = 0
        self._started: float | None = None

    def __enter__(self) -> Meter:
        if self._is_cuda:
            import torch

            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_peak_rss()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._started is not None
        if kind is not None:  # a failed run has no speed, and the device may not answer any more
            return
        if self._is_cuda:
            import torch

            torch.cuda.synchronize(self.device)
            peak = int(torch.cuda.max_memory_allocated(self.device))
        else:
            peak = peak_rss_bytes()
        self.seconds += time.perf_counter() - self._started
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)
        self._started = None

    @property
    def _is_cuda(self) -> bool:
        return self.device.split(":")[0] == "cuda"

    def add(self, *, audio_seconds: float, tokens: int = 0) -> None:
        """Count clips that were translated: seconds of audio, tokens generated."""
        self.audio_seconds += audio_seconds
        self.tokens += tokens

    def result(self) -> Speed:
        """The speed so far. Raises DataError where no time or no audio was recorded."""
        if self.audio_seconds <= 0 or self.seconds <= 0:
            raise DataError(
                f"there is no speed to report: {self.seconds:.3f} s of work on {self.audio_seconds:.3f} s of audio.",
                "Translate at least one clip inside the meter.",
            )
        return Speed(
            seconds=self.seconds,
            audio_seconds=self.audio_seconds,
            rtf=self.seconds / self.audio_seconds,
            tokens=self.tokens,
            tokens_per_second=self.tokens / self.seconds,
            peak_memory_bytes=self.peak_memory_bytes,
            device=self.device,
        )
