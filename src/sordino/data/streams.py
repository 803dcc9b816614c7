"""Ogg's pages and FLAC's frames: is the stream complete, intact, and the only one in its file?

Decoders stop at the end of the first of several streams that were joined end to end, and where a header says so.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from sordino.data.mpeg import after_id3

OGG_BEGIN, OGG_END = 0x02, 0x04  # bits of a page's header type (RFC 3533, section 6)
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
JOINED = "several recordings end to end, of which only the first would be heard"
BLOCK_BYTES = 2**22
TAIL_BYTES = 2**17  # of a FLAC file, in which its last frame begins
FLAC = b"fLaC"
STREAMINFO = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")  # the only beginnings of a FLAC stream


def ogg_problem(path: Path) -> str | None:
    """Is every page complete and intact, the last one marked as the stream's last, and no page a second beginning?

    Damaged pages count as missing: libsndfile drops them, and where they were the first or the last it takes
    what is left for the whole.
    """
    data = path.read_bytes()
    last = at = max(0, data.find(b"OggS"))
    begun = False  # a page that begins no stream was seen: streams that are interleaved all begin before
    while data[at : at + 4] == b"OggS":
        lacing = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
        end = at + 27 + len(lacing) + sum(lacing)
        if at + 27 > len(data) or len(lacing) < data[at + 26] or end > len(data):
            return "its last Ogg page is incomplete"
        if _ogg_crc(data[at : at + 22] + bytes(4) + data[at + 26 : end]) != data[at + 22 : at + 26]:
            return f"the Ogg page at byte {at:,} is damaged"
        begins = bool(data[at + 5] & OGG_BEGIN)
        if begins and begun:
            return JOINED
        begun = begun or not begins
        last, at = at, end
    if data.find(b"OggS\0", at) >= 0:
        return f"something that is no Ogg page stands between its pages, at byte {at:,}"
    return None if data[last + 5] & OGG_END else "its last Ogg page is not the end of the stream"


def _ogg_crc(page: bytes) -> bytes:
    """A page's checksum as stored: CRC-32 with zlib's polynomial, bits the other way round, no inversion."""
    crc = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return crc.to_bytes(4, "big").translate(REVERSED_BITS)


def flac_problem(path: Path) -> str | None:
    """Does one stream alone begin in the file, and does its last frame end where the header says?

    A file that was cut needs no look: decoding it fails.
    """
    with path.open("rb") as file:
        start = after_id3(file.read(10))
        file.seek(start)
        head = file.read(42)
        if head[:4] != FLAC:
            return None
        file.seek(start + 42)
        before = b""
        while block := file.read(BLOCK_BYTES):
            if any(begin in before + block for begin in STREAMINFO):
                return JOINED
            before = block[-8:]
        size = file.tell()
        file.seek(max(start + 42, size - TAIL_BYTES))
        tail = file.read()
    total = int.from_bytes(head[21:26], "big") & 0xF_FFFF_FFFF
    end = _flac_end(tail, int.from_bytes(head[8:10], "big"), total) if total else None
    return f"its header promises {total:,} samples and its frames hold {end:,}" if end else None


def _flac_end(tail: bytes, block: int, total: int) -> int | None:
    """Samples up to the end of the last frame where that is behind `total`; None where it is not.

    block: samples of a frame, where all but the last have as many. Other bytes may look like a frame's header: a frame
    that contradicts must have the right checksum up to the end of the file.
    """
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        frame = _flac_frame(tail, at)
        if frame is None:
            continue
        number, samples, counts_samples = frame
        end = (number if counts_samples else number * block) + samples
        if end == total:
            return None
        if end > total and _crc(tail[at:], 16, 0x8005) == 0:
            return end
    return None


def _flac_frame(data: bytes, at: int) -> tuple[int, int, bool] | None:
    """(number, samples, whether the number counts samples) of the frame header at `at` (RFC 9639, section 9.1)."""
    if at + 6 > len(data) or data[at + 1] & 0xFE != 0xF8:
        return None
    size, rate, channels, depth = data[at + 2] >> 4, data[at + 2] & 15, data[at + 3] >> 4, data[at + 3] & 15
    if size == 0 or rate == 15 or channels > 10 or depth & 1 or depth >> 1 == 3:
        return None
    first, place = data[at + 4], at + 5
    ones = 8 - (first ^ 0xFF).bit_length()  # of the number, written as UTF-8 writes one
    if ones in (1, 8):
        return None
    number = first & (0xFF >> (ones + 1))
    for byte in data[place : place + ones - 1] if ones else b"":
        number, place = number << 6 | byte & 0x3F, place + 1
    if size == 1:
        samples = 192
    elif size < 6:
        samples = 576 << (size - 2)
    elif size < 8:
        samples = int.from_bytes(data[place : place + size - 5], "big") + 1
        place += size - 5
    else:
        samples = 256 << (size - 8)
    place += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if place >= len(data) or _crc(data[at : place + 1], 8, 0x07) != 0:
        return None
    return number, samples, bool(data[at + 1] & 1)


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    """Without inversion, the highest bit first."""
    value, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & mask
    return value
