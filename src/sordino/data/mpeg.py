"""The MPEG frames of an MP3: how much audio there is, and whether the file ends where they do.

libsndfile guesses the length of a file without a frame count from its first frame, and stops there.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mp3Frames:
    """What the MPEG frame headers of an MP3 add up to.

    samples: per channel, at the file's rate, decoder delay and padding included.
    samples_per_frame: 1,152 (MPEG-1) or 576 (MPEG-2, 2.5).
    counted: the file opens with a Xing, Info or VBRI frame, so that its length is known and not guessed.
    whole: the last frame is complete, and no frames follow behind a gap.
    """

    samples: int
    samples_per_frame: int
    counted: bool
    whole: bool


KBPS_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
KBPS_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MPEG1_RATES = (44_100, 48_000, 32_000)  # MPEG-2 halves them, MPEG-2.5 quarters them
LAYER_3 = 1  # as the header's two layer bits spell it


def scan_mp3(path: Path) -> Mp3Frames | None:
    """Walk the frame headers of a Layer III file, tags before and after them aside; None where it has none.

    The walk stops at the first thing that is not a frame, so `samples` can be vouched for; where frames follow
    again behind that, the file is damaged and `whole` is false.
    """
    data = path.read_bytes()
    at = _next_frames(data, after_id3(data))
    first = _mp3_frame(data, at)
    if first is None:
        return None
    opening = data[at : at + first[0]]
    counted = any(tag in opening for tag in (b"Xing", b"Info", b"VBRI"))
    if counted:  # that frame carries no sound
        at += first[0]
    frames, whole = 0, True
    while (frame := _mp3_frame(data, at)) is not None:
        at += frame[0]
        whole = at <= len(data)
        frames += whole
    return Mp3Frames(frames * first[1], first[1], counted, whole and _next_frames(data, at) == len(data))


def _next_frames(data: bytes, at: int) -> int:
    """Offset of the next two frames that follow each other, from `at` on; the end of the data if there are none."""
    while (at := data.find(b"\xff", at)) >= 0:
        frame = _mp3_frame(data, at)
        # The second header must agree in version, layer and rate: chance meets one of them, not both.
        if frame and _mp3_frame(data, at + frame[0]) and _kind(data, at) == _kind(data, at + frame[0]):
            return at
        at += 1
    return len(data)


def _kind(data: bytes, at: int) -> tuple[int, int]:
    return data[at + 1] & 0xFE, data[at + 2] & 0x0C


def after_id3(data: bytes) -> int:
    """Offset behind an ID3v2 tag; its size is 4 x 7 bits."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    return 10 + size


def _mp3_frame(data: bytes, at: int) -> tuple[int, int] | None:
    """(bytes, samples per channel) of the Layer III frame whose header stands at `at`, or None."""
    header = data[at : at + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3  # version: 0 is 2.5, 2 is 2, 3 is 1
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer != LAYER_3 or bitrate in {0, 15} or rate == 3:
        return None
    kbps = (KBPS_MPEG1 if version == 3 else KBPS_MPEG2)[bitrate]
    samples = 1152 if version == 3 else 576
    hertz = MPEG1_RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    return samples // 8 * kbps * 1000 // hertz + padding, samples
