"""One process at a time works in a directory.

Within a machine the kernel's lock says so, which goes with the process. File systems that several machines share may
not pass such locks on, so that there a file beside the stages also names the host and process that works in the run.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sordino.errors import ArtifactError
from sordino.pipeline.leftovers import alive
from sordino.runtime import files
from sordino.runtime.progress import note

# what file systems say that have none; NFS locks no directory
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF)
HOLDER = ".lock-"  # and the stage
# file systems of one machine; any other may be shared
LOCAL = (
    "apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs",
    "tmpfs", "vfat", "xfs", "zfs",
)  # fmt: skip
_warned: set[int] = set()  # numbers of such file systems, once they were told of


@dataclass(frozen=True)
class Holder:
    """Who works in a run. beside: whether stages that also say so may run at the same time."""

    host: str
    process: int
    stage: str
    beside: bool


@contextmanager
def run_locked(run: Path, stage: str, beside: bool = False) -> Iterator[None]:
    """Keep a run to this process, on whatever host others are.

    beside: share it with other stages that say so. Raises ArtifactError where another process works in it.
    """
    with locked(run, shared=beside):
        if not is_shared(run):
            yield
            return
        file = _hold(run, Holder(socket.gethostname(), os.getpid(), stage, beside))
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _hold(run: Path, holder: Holder) -> Path:
    """The file that says who works in the run. Raises ArtifactError where others say so."""
    file = run / f"{HOLDER}{holder.stage}"
    for other in run.glob(f"{HOLDER}*"):
        if _is_gone(_holder(other)):
            other.unlink(missing_ok=True)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(holder)))
    except FileExistsError:
        raise _taken(run, file, _holder(file)) from None
    for other in run.glob(f"{HOLDER}*"):  # only now, so that of two that begin at once one sees the other
        name = _holder(other)
        if other != file and (name is None or not (holder.beside and name.beside)):
            file.unlink()
            raise _taken(run, other, name)
    return file


def _holder(file: Path) -> Holder | None:
    """None where it cannot be told, since it is just being written or was damaged."""
    try:
        return Holder(**files.read_json(file, {}))
    except (TypeError, ArtifactError, OSError):
        return None


def _is_gone(holder: Holder | None) -> bool:
    """Whether a process of this host has ended; of other hosts nothing is known."""
    return holder is not None and holder.host == socket.gethostname() and not alive(holder.process)


def _taken(run: Path, file: Path, holder: Holder | None) -> ArtifactError:
    if holder is None:
        return ArtifactError(f"{file} says that another sordino is working in {run}.", f"If none is, delete {file}.")
    return ArtifactError(
        f"another sordino is working in {run}: {holder.stage}, process {holder.process} on {holder.host}.",
        f"Wait for it. If it was killed there, delete {file}.",
    )


def is_shared(directory: Path) -> bool:
    """Whether the file system may be one that other machines work on too."""
    device = directory.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    kinds = {fields[2]: line.partition(" - ")[2].split(" ")[0] for line in lines if (fields := line.split(" "))}
    # btrfs and overlay give their files numbers that no mount has
    return number in kinds and kinds[number] not in LOCAL


@contextmanager
def locked(directory: Path, shared: bool = False) -> Iterator[None]:
    """Keep a directory to this process; the lock goes with the process, however that ends.

    shared: with others that share it. Raises ArtifactError where another process works in it. On a file system without
    locks, a warning must do.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)  # the directory itself is locked: no file to leave behind
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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
