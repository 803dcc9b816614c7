"""One process at a time works in a directory."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sordino.errors import ArtifactError
from sordino.runtime.progress import note

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what file systems say that have none
_warned: set[int] = set()  # numbers of such file systems, once they were told of


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep a directory to this process; the lock goes with the process, however that ends.

    Raises ArtifactError where another process works in it. On a file system without locks, a warning must do.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)  # the directory itself is locked: no file to leave behind
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(f"another sordino is working in {directory}.", "Wait for it, or set a name.") from error
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            _warn_of_no_locks(handle, directory)
        yield
    finally:
        os.close(handle)


def _warn_of_no_locks(handle: int, directory: Path) -> None:
    device = os.fstat(handle).st_dev
    if device not in _warned:
        _warned.add(device)
        note(f"the file system of {directory} has no locks: let no second sordino work there at the same time")
