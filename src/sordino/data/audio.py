"""Audio files to float32 waveforms, 16 kHz mono, with every reason to refuse one spelled out.

Reads what libsndfile reads (WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF...) at any rate and channel count, and of a long
talk only the slice asked for. Nothing is cut silently: a clip that is too long is refused, and so is a file that
ends before its container says it should (see containers.py for how that is told).

Not detectable: changed bytes inside PCM samples or MPEG frames; the cut of a WAV or AU file whose header gives no size
(one written to a pipe) and, between two frames, of an MP3 without a frame count; the loss of one MPEG frame (24 to
72 ms) of an MP3. Slices in front of the cut of a WAV or FLAC file are served, those of Ogg and MP3 are not. An Opus
slice differs from the same samples of the whole by up to about 1e-3, because the decoder starts 80 ms ahead of it.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sordino.data import containers
from sordino.data.clip import LONGEST, MAX_SECONDS, MIN_SECONDS, SAMPLE_RATE, Clip
from sordino.data.mpeg import scan_mp3
from sordino.errors import DataError
from sordino.runtime import foreign

Waveform = NDArray[np.float32]  # (n,), 16,000 Hz, full scale is 1.0

SILENCE_DBFS = -80.0  # a 16-bit file's last three steps: dither and nothing else
SILENCE_PEAK = 10 ** (SILENCE_DBFS / 20)
END_TOLERANCE = 0.01  # seconds: tables round their times, and the last slice of a talk then ends past the file
RESYNCING = {"OGG", "MP3"}  # decoders of these pass over damage without a word and move what follows it forward
SKIP_FRAMES = 2**16  # decoded at once on the way to a slice
UNKNOWN_FRAMES = 2**62  # libsndfile reports 2**63 - 1 where a header gives no length
MP3_PADDING_FRAMES = 4  # encoder delay and padding, which decoders drop, never fill as many MPEG frames

MIN_RATE, MAX_RATE = 4_000, 768_000  # samples a second: telephones have 8,000, studios up to 384,000
CONVERT = "ffmpeg -i FILE -ac 1 -ar 16000 FILE.flac"

BLOCK_SECONDS = 30.0  # of a talk that are in memory at once while it is streamed

FETCH_AGAIN = "Fetch or export the file again, or leave this clip out."


class SilentError(DataError):
    """A stretch of audio in which nothing sounds; callers that owe a line for it may pass over it."""


def load(
    path: str | Path,
    start: float = 0.0,
    seconds: float | None = None,
    *,
    max_seconds: float = MAX_SECONDS,
    min_seconds: float = MIN_SECONDS,
) -> Waveform:
    """Decode one stretch of a file -> float32 (n,), 16,000 Hz, channels averaged.

    start: seconds into the file. seconds: length of the stretch; None reads to the end.
    Raises DataError, naming the file: missing, a directory, empty, not audio, truncated or damaged, slice beyond
    the end, shorter than `min_seconds`, longer than `max_seconds`, NaN or infinite samples, silence (SilentError).
    """
    path = Path(path)
    with _open(path) as file:
        first, count = _stretch(file, path, start, seconds)
        cut = seconds is None or count < round(seconds * file.samplerate)
        _check_length(path, count / file.samplerate if cut or seconds is None else seconds, min_seconds, max_seconds)
        return _waveform(_read(file, path, first, count), int(file.samplerate), path, max_seconds)


def from_samples(
    samples: NDArray[Any],
    rate: float,
    name: str,
    *,
    max_seconds: float = MAX_SECONDS,
    min_seconds: float = MIN_SECONDS,
) -> Waveform:
    """Samples at any rate -> float32 (n,), 16,000 Hz, channels averaged; what `load` gives for a file of them.

    samples: (n,) or (n, channels); whole numbers have the full scale of their type, as WAV files have.
    rate: Hz. Raises DataError as `load` does, and for samples of another shape.
    """
    values = np.asarray(samples)
    if values.ndim not in (1, 2) or values.dtype.kind not in "iuf" or not 0 < rate < np.inf:
        raise DataError(
            f"{name} is no audio: {values.dtype} of shape {values.shape} at {rate:g} Hz.",
            "Give samples (n,) or (n, channels), numbers, with their rate in Hz.",
        )
    frames = values[:, None] if values.ndim == 1 else values
    if frames.shape[1] > max(1, len(frames)):
        raise DataError(f"{name} has more channels than samples: {values.shape}.", "Transpose it: (n, channels).")
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        middle = 0 if values.dtype.kind == "i" else limits.max // 2 + 1
        frames = (frames.astype(np.float64) - middle) / -(int(limits.min) - middle)
    _check_length(name, len(frames) / rate, min_seconds, max_seconds)
    return _waveform(frames.astype(np.float32), rate, name, max_seconds)


def _check_length(name: str | Path, length: float, min_seconds: float, max_seconds: float) -> None:
    """Raise DataError for a length, in seconds, outside the limits."""
    if length > max_seconds:
        raise DataError(
            f"{name}: the clip is {length:.2f} s long, {max_seconds:g} s is the limit.",
            "Segment it: give each clip its start and seconds in the table or manifest.",
        )
    if length < min_seconds:
        raise DataError(
            f"{name}: the clip is {length:.3f} s long, {min_seconds:g} s is the minimum.",
            "Leave it out, or merge it with its neighbour.",
        )


def _waveform(samples: Waveform, rate: float, name: str | Path, max_seconds: float) -> Waveform:
    """(n, channels) at `rate` -> (n,) at 16,000 Hz. Raises DataError for NaN and infinity, SilentError for silence."""
    mono = _mix(samples, name)
    if float(np.abs(mono).max(initial=0.0)) < SILENCE_PEAK:
        cancel = float(np.abs(samples).max(initial=0.0)) >= SILENCE_PEAK
        why = "its channels cancel each other" if cancel else f"it never rises above {SILENCE_DBFS:g} dBFS"
        fix = "Export one of its channels alone." if cancel else "Leave it out, or check the recording."
        raise SilentError(f"{name}: the clip is silent: {why}.", fix)
    if rate != SAMPLE_RATE:
        mono = np.asarray(soxr.resample(mono, rate, SAMPLE_RATE), dtype=np.float32)
    return mono[: round(max_seconds * SAMPLE_RATE)]  # rounding may have added one sample


def load_clip(clip: Clip) -> Waveform:
    """The clip's stretch of its file -> float32 (n,), 16,000 Hz mono; raises as `load` does."""
    return load(clip.audio, clip.start, clip.seconds)


def stream(path: str | Path, start: float = 0.0, seconds: float | None = None) -> Iterator[Waveform]:
    """A stretch of any length in blocks of at most 30 s and a bit -> float32 (n,), 16,000 Hz, channels averaged.

    Only one block is in memory. Silence is served like anything else. Raises DataError as `load` does.
    """
    path = Path(path)
    with _open(path) as file:
        first, count = _stretch(file, path, start, seconds)
        rate = int(file.samplerate)
        change = soxr.ResampleStream(rate, SAMPLE_RATE, 1) if rate != SAMPLE_RATE else None
        step = round(BLOCK_SECONDS * rate)
        for done in range(0, count, step):
            size = min(step, count - done)
            mono = _mix(_read(file, path, first + done, size, at=first + done if done else 0), path)
            yield mono if change is None else change.resample_chunk(mono, last=done + size == count)


def duration(path: str | Path) -> float:
    """Seconds of a whole file from its header and container, without decoding.

    Raises DataError as `load` does for files that cannot be opened or were cut; a cut FLAC, or a cut MP3
    that opens with a frame count, shows only when it is decoded.
    """
    path = Path(path)
    with _open(path) as file:
        _, count = _stretch(file, path, 0.0, None)
        return float(count / file.samplerate)


def _open(path: Path) -> Any:
    """An open soundfile.SoundFile; DataError for what is not a readable audio file."""
    if not os.path.lexists(path):
        raise DataError(f"{path} does not exist.", "Check the path, and that the data set is complete.")
    with foreign.reading(path) as stream:
        if not stream.read(1):
            raise DataError(f"{path} is empty (0 bytes).", FETCH_AGAIN)
    try:
        os.fsencode(path).decode("utf-8")
        file = soundfile.SoundFile(path)
    except UnicodeDecodeError:
        raise DataError(f"{path}: its name is not UTF-8, and no table could hold it.", "Rename the file.") from None
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw
        detail = getattr(error, "error_string", None) or str(error)
        remedy = f"If another player opens it, convert it: {CONVERT}"
        raise DataError(f"{path} cannot be read as audio: {detail.strip().rstrip('.')}.", remedy) from None
    if file.format not in containers.CHECKED:
        problem = f"{path} is in a container ({file.format}) that does not show whether it was cut."
    elif not MIN_RATE <= file.samplerate <= MAX_RATE:
        problem = f"{path} has {file.samplerate:,} samples a second; speech has {MIN_RATE:,} to {MAX_RATE:,}."
    else:
        return file
    file.close()
    raise DataError(problem, f"Convert it: {CONVERT}")


def _stretch(file: Any, path: Path, start: float, seconds: float | None) -> tuple[int, int]:
    """(first frame, number of frames) at the file's own rate; checked against the file's end."""
    if not 0 <= start <= LONGEST or not (seconds is None or 0 < seconds <= LONGEST):
        raise DataError(
            f"{path}: start={start:g} and seconds={seconds} do not describe a stretch of audio.", "Both are in seconds."
        )
    rate, total = int(file.samplerate), int(file.frames)
    first = round(start * rate)
    if total >= UNKNOWN_FRAMES:
        if seconds is None:
            raise DataError(
                f"{path} does not say how long it is (it was written to a pipe).",
                "Write it anew so that its header is complete: ffmpeg -i FILE NEW.flac",
            )
        return first, round(seconds * rate)
    if seconds is None:
        _check_ending(file, path)
        if first >= total and first > 0:
            raise _beyond(path, start, start, total / rate)
        return first, total - first
    count = round(seconds * rate)
    if first + count > total + END_TOLERANCE * rate or first >= total:
        _check_ending(file, path)  # a cut file is the likelier reason, and the better message
        raise _beyond(path, start, start + seconds, total / rate)
    if file.format in RESYNCING:
        _check_container(file, path)
    # A whole file's length was rounded to 16 kHz when it was noted: do not lose its last sample over that.
    reaches_end = first + count > total or total - first - count <= rate / SAMPLE_RATE
    return first, total - first if reaches_end else count


def _beyond(path: Path, start: float, end: float, total: float) -> DataError:
    return DataError(
        f"{path}: the clip spans {start:.2f} s to {end:.2f} s and the file ends at {total:.2f} s.",
        "Check start and seconds (both in seconds, not samples or milliseconds), and that it is the right file.",
    )


def _check_ending(file: Any, path: Path) -> None:
    """DataError where the container shows that the file does not end at `file.frames`."""
    _check_container(file, path)
    frames = scan_mp3(path) if file.format == "MP3" else None
    if frames is None:
        return
    hidden = frames.samples - int(file.frames)
    # libsndfile's own length is a guess where no frame count opens the file, and it never decodes past it.
    if hidden > (most := MP3_PADDING_FRAMES * frames.samples_per_frame) or (not frames.counted and hidden < -most):
        raise DataError(
            f"{path} holds {frames.samples / file.samplerate:.2f} s of MPEG frames and would be decoded as "
            f"{file.frames / file.samplerate:.2f} s: its frame count is missing or wrong.",
            f"Convert it: {CONVERT}",
        )


def _check_container(file: Any, path: Path) -> None:
    status = path.stat()
    verdict = _verdict(path, file.format, status.st_size, status.st_mtime_ns)
    if verdict:
        raise DataError(f"{path} {verdict[0]}.", verdict[1])


@lru_cache(maxsize=256)
def _verdict(path: Path, container: str, _size: int, _changed: int) -> tuple[str, str] | None:
    """`containers.problem`, once for all the slices of a talk as long as its file does not change."""
    return containers.problem(path, container)


def _read(file: Any, path: Path, first: int, count: int, at: int = 0) -> Waveform:
    """Frames first..first+count -> float32 (count, channels); DataError where they cannot all be decoded.

    at: where the decoder stands, for the codecs that cannot be sought in (GSM 6.10): those decode their way.
    """
    try:
        if file.seekable():
            file.seek(first)
        while not file.seekable() and at < first and len(skipped := file.read(min(SKIP_FRAMES, first - at))):
            at += len(skipped)
        samples: Waveform = file.read(count, dtype="float32", always_2d=True)
    except soundfile.SoundFileError:
        raise _damaged(file, path, None, count) from None
    if len(samples) < count and count - len(samples) > _mp3_slack(file, path):
        raise _damaged(file, path, len(samples), count)
    return samples


def _mp3_slack(file: Any, path: Path) -> int:
    """Frames that may be missing at the end of an MP3 without its being cut; 0 for other formats.

    One MPEG frame, because encoders disagree on whether the frame that holds the count counts itself; the
    padding where there is no count and the length is a guess.
    """
    frames = scan_mp3(path) if file.format == "MP3" else None
    if frames is None:
        return 0
    return frames.samples_per_frame * (1 if frames.counted else MP3_PADDING_FRAMES)


def _damaged(file: Any, path: Path, decoded: int | None, count: int) -> DataError:
    rate = file.samplerate
    outcome = "the decoder gave up" if decoded is None else f"{decoded / rate:.2f} s could be decoded"
    return DataError(f"{path} is truncated or damaged: {outcome} of {count / rate:.2f} s.", FETCH_AGAIN)


def _mix(samples: Waveform, path: str | Path) -> Waveform:
    """(n, channels) -> (n,), the mean of the channels; DataError for NaN and infinity."""
    if not np.isfinite(samples).all():
        bad = int(np.count_nonzero(~np.isfinite(samples).all(axis=1)))
        raise DataError(
            f"{path}: {bad:,} of {len(samples):,} samples are NaN or infinite.",
            "Export it again, as 16-bit PCM or FLAC.",
        )
    mono: Waveform = samples.mean(axis=1, dtype=np.float32)
    return mono
