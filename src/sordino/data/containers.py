"""Whether an audio file ends where its container says it does.

libsndfile is lenient: of a WAV, AIFF or Ogg file that was cut it serves what is left and calls that the whole,
and of an MP3 without a frame count it guesses the length from the first frame and stops there. Each reader here
looks at the container's own bookkeeping instead: chunk sizes, Ogg's pages and checksums, the MPEG frame headers.
FLAC needs none (decoding past the cut fails). Formats not listed in `ended_early` are not checked.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

STREAMED_BYTES = 0x7FFF_F000  # sizes from here up are what ffmpeg and sox write when they cannot seek back
OGG_END_OF_STREAM = 0x04  # bit of a page's header type (RFC 3533, section 6)
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ended_early(path: Path, container: str) -> str | None:
    """What shows that the file was cut, or None; `container` is libsndfile's name of the format."""
    if container in {"WAV", "WAVEX", "AIFF"}:
        return _chunks_ended_early(path)
    if container == "OGG":
        return _ogg_ended_early(path)
    if container == "MP3":
        frames = scan_mp3(path)
        return None if frames is None or frames.whole else "its MPEG frames break off"
    return None


def _chunks_ended_early(path: Path) -> str | None:
    """RIFF and AIFF: does the chunk that holds the samples reach as far as its size says?"""
    length = path.stat().st_size
    with path.open("rb") as file:
        form = file.read(12)[:4]
        if form not in {b"RIFF", b"FORM"}:
            return None
        layout, samples = ("<4sI", b"data") if form == b"RIFF" else (">4sI", b"SSND")
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack(layout, header)
            left = length - file.tell()
            if name == samples:
                if size == 0 and left > 0:
                    return f"its header was never completed: it promises no samples and {left:,} bytes follow"
                if left < size < STREAMED_BYTES:
                    return f"its header promises {size:,} bytes of samples and {left:,} are there"
                return None
            file.seek(size + size % 2, 1)
    return "it ends before its samples"


def _ogg_ended_early(path: Path) -> str | None:
    """Ogg (Vorbis, Opus): is every page complete and intact, and the last one marked as the stream's last?

    Damaged pages count as missing: libsndfile drops them, and where they were the first or the last it takes
    what is left for the whole.
    """
    data = path.read_bytes()
    last = at = max(0, data.find(b"OggS"))
    while data[at : at + 4] == b"OggS":
        lacing = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
        end = at + 27 + len(lacing) + sum(lacing)
        if at + 27 > len(data) or len(lacing) < data[at + 26] or end > len(data):
            return "its last Ogg page is incomplete"
        if _ogg_crc(data[at : at + 22] + bytes(4) + data[at + 26 : end]) != data[at + 22 : at + 26]:
            return f"the Ogg page at byte {at:,} is damaged"
        last, at = at, end
    return None if data[last + 5] & OGG_END_OF_STREAM else "its last Ogg page is not the end of the stream"


def _ogg_crc(page: bytes) -> bytes:
    """A page's checksum as stored: CRC-32 with zlib's polynomial, bits the other way round, no inversion."""
    crc = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return crc.to_bytes(4, "big").translate(REVERSED_BITS)


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
    at = _next_frames(data, _after_id3(data))
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


def _after_id3(data: bytes) -> int:
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
