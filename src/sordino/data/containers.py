"""Whether an audio file ends where its container says it does, and holds one recording alone.

libsndfile is lenient: of a file that was cut it serves what is left and calls that the whole; of recordings joined end
to end, and of a header that promises too little, the beginning; and of an MP3 without a frame count it guesses the
length. The readers here look at the container's own bookkeeping instead: chunk sizes and what follows the samples,
pages and frames (streams.py), MPEG frame headers (mpeg.py).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from sordino.data.mpeg import scan_mp3
from sordino.data.streams import JOINED, flac_problem, ogg_problem

STREAMED_BYTES = 0x7FFF_F000  # 32-bit sizes from here up are what ffmpeg and sox write when they cannot seek back
STRAY_BYTES = 1024  # behind the samples that may be anything
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")


@dataclass(frozen=True)
class Chunks:
    """A container of named chunks. first: where they begin; header: of a chunk, name and size; samples: whose data is
    the audio; align: of their places; counts_itself: sizes are with the header; bits: of a size."""

    first: int
    header: struct.Struct
    samples: bytes
    align: int = 2
    counts_itself: bool = False
    bits: int = 32


W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of its identifiers, behind four letters
CONTAINERS = {  # by the first four bytes of a file
    b"RIFF": Chunks(12, struct.Struct("<4sI"), b"data"),
    b"RF64": Chunks(12, struct.Struct("<4sI"), b"data"),
    b"RIFX": Chunks(12, struct.Struct(">4sI"), b"data"),
    b"FORM": Chunks(12, struct.Struct(">4sI"), b"SSND"),
    b"caff": Chunks(8, struct.Struct(">4sq"), b"data", align=1, bits=64),
    b"riff": Chunks(40, struct.Struct("<16sq"), b"data" + W64_TAIL, align=8, counts_itself=True, bits=64),
}


def problem(path: Path, container: str) -> tuple[str, str] | None:
    """What is wrong with a file's end, and what to do; None where nothing is.

    container: libsndfile's name of the format, one of CHECKED.
    """
    reason = CHECKED[container](path)
    if reason is None:
        return None
    if reason == JOINED:
        return f"holds {reason}", "Give each recording a file of its own, or join their sounds instead of their bytes."
    return f"is truncated or damaged: {reason}", "Fetch or export the file again, or leave this clip out."


def _chunk_problem(path: Path) -> str | None:
    """Does the chunk that holds the samples reach as far as its size says, and is what follows no audio?"""
    length = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        kind = CONTAINERS.get(start[:4])
        if kind is None:
            return "its beginning is not that of its kind"
        long_size = None  # RF64 keeps the size of its samples elsewhere
        file.seek(kind.first)
        while len(header := file.read(kind.header.size)) == kind.header.size:
            name, size = kind.header.unpack(header)
            if kind.counts_itself:
                size -= kind.header.size
            rest = length - file.tell()
            if name == b"ds64":
                long_size = int.from_bytes(file.read(16)[8:], "little")
                file.seek(-16, 1)
            if name == kind.samples:
                size = long_size if long_size is not None and size == 0xFFFF_FFFF else size
                if size == 0 and rest > 0:
                    return f"its header was never completed: it promises no samples and {rest:,} bytes follow"
                if size < 0 or (kind.bits == 32 and long_size is None and size >= STREAMED_BYTES):
                    return None  # it was written to a pipe, and no one can tell
                if rest < size:
                    return f"its header promises {size:,} bytes of samples and {rest:,} are there"
                file.seek(size + -size % kind.align, 1)
                return _stray(file.read(), kind)
            if size < 0:
                return "one of its chunks has no size"
            file.seek(size + -size % kind.align, 1)
    return "it ends before its samples"


def _stray(rest: bytes, kind: Chunks) -> str | None:
    """Whether bytes behind the samples are more chunks, a tag or padding; anything else may be audio."""
    at = 0
    while at + kind.header.size <= len(rest):
        name, size = kind.header.unpack_from(rest, at)
        if name[:4] in CONTAINERS:
            return JOINED
        end = at + size + (0 if kind.counts_itself else kind.header.size)
        if not re.fullmatch(rb"[ -~]{4}", name[:4]) or size < 0 or end > len(rest):
            break
        at = end + -end % kind.align
    rest = rest[at:]
    if len(rest) <= STRAY_BYTES or rest.startswith(TAGS) or not any(rest):
        return None
    return f"{len(rest):,} bytes follow the samples that its header promises, and would not be heard"


def _au_problem(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(12)
    order = "little" if start.startswith(b"dns.") else "big"
    begin, size = (int.from_bytes(start[at : at + 4], order) for at in (4, 8))  # type: ignore[arg-type]
    return _exact(path, begin, None if size == 0xFFFF_FFFF else size)


def _nist_problem(path: Path) -> str | None:
    """SPHERE: a header of text, 'sample_count -i 72000', in as many bytes as its second line says."""
    with path.open("rb") as file:
        text = file.read(65536)
    numbers = {key: int(value) for key, value in re.findall(rb"(?m)^(\w+) -i (\d{1,18})", text)}
    begin = re.match(rb"NIST_1A\s+(\d{1,9})", text)
    if begin is None or b"sample_count" not in numbers:
        return "its header does not say how many samples there are"
    size = numbers[b"sample_count"] * numbers.get(b"sample_n_bytes", 2) * numbers.get(b"channel_count", 1)
    return _exact(path, int(begin[1]), size)


def _exact(path: Path, begin: int, size: int | None) -> str | None:
    """A header of `begin` bytes and samples of `size`; None where it was written to a pipe, and no one can tell."""
    there = path.stat().st_size - begin
    if size is not None and there < size:
        return f"its header promises {size:,} bytes of samples and {max(0, there):,} are there"
    if size is not None and there > size + STRAY_BYTES:
        return f"{there - size:,} bytes follow the samples that its header promises, and would not be heard"
    return None


def _mp3_problem(path: Path) -> str | None:
    frames = scan_mp3(path)
    return None if frames is None or frames.whole else "its MPEG frames break off"


def _left_to_libsndfile(_: Path) -> None:
    """It refuses these where they are cut."""


CHECKED = {
    "WAV": _chunk_problem, "WAVEX": _chunk_problem, "RF64": _chunk_problem, "AIFF": _chunk_problem,
    "W64": _chunk_problem, "CAF": _chunk_problem, "AU": _au_problem, "NIST": _nist_problem, "OGG": ogg_problem,
    "FLAC": flac_problem, "MP3": _mp3_problem, "HTK": _left_to_libsndfile, "SDS": _left_to_libsndfile,
}  # fmt: skip
