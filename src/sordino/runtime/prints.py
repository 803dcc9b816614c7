"""Fingerprints of recordings by their ends, remembered as long as a file is as it was."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from sordino.errors import ArtifactError
from sordino.runtime import files


def fingerprint_sampled(file: Path, sample: int = 2**16) -> str:
    """SHA-256 of a file's size and of its first and last 64 KiB: tells recordings apart without reading all of each.

    A re-recorded, re-encoded or swapped file shows; bytes changed in the middle of one do not.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(f"ends {size}".encode())
    with file.open("rb") as data:
        digest.update(data.read(sample))
        if size > sample:
            data.seek(max(sample, size - sample))
            digest.update(data.read(sample))
    return digest.hexdigest()


class SampledPrints:
    """`fingerprint_sampled` of many files; those whose size and time of change are as before are not read again.

    file: where they are remembered between looks. It is a cache: a damaged one is made anew.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._before: dict[str, object] = {}
        self._now: dict[str, tuple[int, int, str]] = {}
        with suppress(ArtifactError):
            self._before = files.read_json(file, {}) if file.is_file() else {}

    def of(self, path: Path, key: str) -> str:
        """key: what the file is called from look to look."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        match self._before.get(key):
            case [int() as size, int() as changed, str() as digest] if [size, changed] == stamp:
                pass
            case _:
                digest = fingerprint_sampled(path)
        self._now[key] = (status.st_size, status.st_mtime_ns, digest)
        return digest

    def save(self) -> None:
        """Remember what was asked for."""
        self.file.parent.mkdir(exist_ok=True)
        files.write_json(self.file, {key: [*entry] for key, entry in self._now.items()})
