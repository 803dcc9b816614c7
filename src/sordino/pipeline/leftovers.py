"""What is found where a stage will write: strangers' files, which are never deleted, and our own, which may be.

A directory is ours by one file in it: a finished stage by stage.json, which lists all that is there, unfinished work
by .request.json. `discard` removes what says so last, so that a kill in between does not make a stranger of it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from sordino.config.records import STAGE_FILE, read_stage
from sordino.errors import ArtifactError

REQUEST_FILE = ".request.json"
STATE_DIR = ".state"  # resume points; not part of the finished artefact
DISCARDED = ".discarded"  # what a request is renamed to while its work is being removed
TORN = ".*.tmp"  # files and directories that are written beside and renamed
# what systems leave in any directory that they show or serve
JUNK = re.compile(r"\.DS_Store|\._.*|\.directory|\.nfs[0-9a-f]+|Thumbs\.db|desktop\.ini")
WRITER = re.compile(r"(?:@([^@]+))?\.(\d+)(?:-\d+)?\.tmp$")  # host, where it says, and process that wrote a torn file


def partial_of(directory: Path) -> Path:
    return directory.with_name(directory.name + ".partial")


def old_of(directory: Path) -> Path:
    """Where the former result waits while the new one takes its place."""
    return directory.with_name(f".{directory.name}.old")


def refuse_foreign(directory: Path) -> None:
    """Raise ArtifactError where making `directory` would delete, or be stopped by, what sordino did not make."""
    for place in (directory, partial_of(directory), old_of(directory)):
        stranger = foreign(place)
        if stranger is not None:
            raise ArtifactError(
                f"{stranger} is not of sordino's making, and {directory} is to be written.",
                "Move it away, or set another name or out.",
            )


def foreign(place: Path) -> Path | None:
    """The first thing at `place`, or in it, that no stage wrote; None for a directory of ours and an empty one."""
    if not os.path.lexists(place):
        return None
    record = read_stage(place) if place.is_dir() else None
    if (place.is_symlink() and record is None) or not place.is_dir():
        return place
    if any((place / name).is_file() for name in (REQUEST_FILE, DISCARDED)):
        return None
    ours = {STAGE_FILE, *(record or {}).get("outputs", {})}
    for path in _files(place):
        inside = path.relative_to(place)
        own = record is not None and (inside.as_posix() in ours or inside.parts[0] == STATE_DIR)
        if not own and not any(part.startswith(".") and part.endswith(".tmp") for part in inside.parts):
            return path
    return None


def _files(directory: Path) -> Iterator[Path]:
    """All that is no directory, links to directories too, without what systems leave; sorted."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_symlink() or not path.is_dir())
    return (path for path in paths if not JUNK.fullmatch(path.name))


def discard(directory: Path) -> None:
    """Remove a directory of ours, or the link to one. Killed half-way, it is ours still, and not resumed."""
    if directory.is_symlink():
        directory.unlink()
        return
    if not directory.exists():
        return
    if (directory / REQUEST_FILE).exists():
        (directory / REQUEST_FILE).rename(directory / DISCARDED)
    last = directory / (DISCARDED if (directory / DISCARDED).exists() else STAGE_FILE)
    for path in list(directory.iterdir()):
        if path != last:
            _remove(path)
    last.unlink(missing_ok=True)
    directory.rmdir()


def clear_torn(directory: Path) -> None:
    """Remove what a kill left half written. The directory must be locked."""
    for path in list(directory.rglob(TORN)):
        _remove(path)


def clear_cache(cache: Path) -> None:
    """Remove what processes that are gone left half written, and this one, which has not begun to write."""
    for path in list(cache.rglob("*.tmp")):
        writer = WRITER.search(path.name)
        here = writer and writer[1] in (None, socket.gethostname())
        if writer and here and path.is_file() and not alive(int(writer[2])):
            path.unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Of another process than this one: a container may give every run the same number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
