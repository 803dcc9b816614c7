"""User-facing errors: what is wrong, what was found, what to do next.

Every mistake that a user can make becomes one of these; the command line prints it as one short message
and exits with 2. Anything else that escapes is a bug of ours and exits with 1 and a traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

from sordino.runtime import terminal


class SordinoError(Exception):
    """A mistake the user can fix.

    problem: one sentence that names the item (file, key, clip id) and what is wrong with it.
    remedy: what to do or run next; empty only where the problem already says it.
    Names in either may come from anywhere: what a terminal would obey is spelled out, and long words are clipped.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = terminal.message(problem)
        self.remedy = terminal.message(remedy)
        super().__init__(f"{self.problem} {self.remedy}".strip())


OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, torch or a driver says that memory ran out."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, (RuntimeError, OSError)) and any(s in str(error).lower() for s in OUT_OF_MEMORY))
    )


# sentences in which libraries advise to read pickles, run a repository's code, or ask their authors
ADVICE = re.compile(
    r"weights_only|pickle|torch\.load|trust_remote_code|use_safetensors|from_(?:tf|flax)|https?://", re.I
)
REASON_CHARACTERS = 300


def reason(error: BaseException) -> str:
    """What a library's exception says, on one line and clipped, without its advice; never empty."""
    sentences = re.split(r"(?<=[.!?])\s+|\n+", str(error))
    told = " ".join(" ".join(part.split()) for part in sentences if not ADVICE.search(part)).strip()
    return terminal.printable(told or type(error).__name__, REASON_CHARACTERS).rstrip(".")


def near_match(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant; None where none is close."""
    return next(iter(difflib.get_close_matches(word, list(names), 1)), None)


class RecipeError(SordinoError):
    """An unknown key, a wrong type, or settings that contradict each other."""


class DataError(SordinoError):
    """Audio, texts or a manifest that cannot be used."""


class FamilyError(SordinoError):
    """A model directory that is not of a supported family, or is damaged."""


class ArtifactError(SordinoError):
    """A run directory whose contents are missing, incomplete or of another recipe."""


class UsageError(SordinoError):
    """A command line, or a call of the Python API, that cannot be followed."""


class HubError(SordinoError):
    """The Hugging Face Hub cannot be reached, or refuses."""


FULL = "Free some space and run the same command again: it goes on from what is kept."
RIGHTS = "Change its rights, or name another place."
NAME = "Check the path."
# errno -> (what is wrong with a path, what to do)
OF_THE_MACHINE = {
    errno.ENOSPC: ("the disk is full", FULL),
    errno.EDQUOT: ("the disk quota is used up", FULL),
    errno.EFBIG: ("it would grow beyond the largest file allowed here", "Raise the limit (ulimit -f) or the quota."),
    errno.EACCES: ("permission denied", RIGHTS),
    errno.EPERM: ("the operation is not permitted", RIGHTS),
    errno.EROFS: ("the file system is read-only", "Name another place to write to."),
    errno.EMFILE: ("this process has too many files open", "Raise the limit (ulimit -n)."),
    errno.ENFILE: ("this machine has too many files open", "End other programs, or raise the limit."),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "Give a shorter one."),
    errno.ENOENT: ("there is no such file or directory", NAME),
    errno.ENOTDIR: ("a file is where a directory must be", NAME),
    errno.EISDIR: ("this is a directory, not a file", NAME),
    errno.ELOOP: ("this is a link that leads back to itself", "Remove it, or name the file that it should lead to."),
    errno.EEXIST: ("something of this name is in the way", "Move it, or name another place."),
    errno.ENOTEMPTY: ("a directory that is not empty is in the way", "Move it, or name another place."),
    errno.EBUSY: ("it is in use", "End the program that uses it, or name another place."),
    errno.EIO: ("it cannot be read or written: the disk reports an error", "Check the disk, and copy the file again."),
    errno.ESTALE: ("its server no longer has it", "Mount the file system again."),
    errno.ENOLCK: ("the file system has no locks left", "Name a place on another one."),
    errno.ENOSYS: ("the file system cannot do this", "Name a place on another one."),
    errno.EOPNOTSUPP: ("the file system cannot do this", "Name a place on another one."),
}
# libraries tell of these in errors of their own: Rust and Python give the number, C only the words
WRAPPED = {
    os.strerror(number).lower(): number
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.EACCES, errno.EROFS, errno.EIO)
}
NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")


def explain_os_error(error: BaseException, path: str | Path | None = None) -> ArtifactError | None:
    """An error of the machine (full disk, rights, names, limits) as one sentence; None for any other error.

    path: what was worked on, for errors that name no file, or only its last part.
    """
    number = _number(error)
    if number not in OF_THE_MACHINE:
        return None
    sentence, remedy = OF_THE_MACHINE[number]
    parts = (getattr(error, "filename", None), getattr(error, "filename2", None))
    names = [os.fsdecode(part) for part in parts if isinstance(part, str | bytes | os.PathLike)]
    name = names[-1] if names else ""  # of a rename, the place that could not be made
    if path is not None and not os.path.dirname(name) and not os.path.lexists(name):  # noqa: PTH120 (as shutil.rmtree)
        name = os.path.join(path, name) if name else os.fspath(path)  # noqa: PTH118
    place = f"{terminal.printable(name)}: " if name else ""
    return ArtifactError(f"{place}{sentence}.", remedy)


def _number(error: BaseException) -> int | None:
    """errno of an OSError, or that which a library's message tells of."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    numbers = NUMBER.search(text)
    told = int(numbers[1] or numbers[2]) if numbers else None
    if told in WRAPPED.values():
        return told
    return next((number for words, number in WRAPPED.items() if words in text.lower()), None)
