"""User-facing errors: what is wrong, what was found, what to do next.

Every mistake that a user can make becomes one of these; the command line prints it as one short message
and exits with 2. Anything else that escapes is a bug of ours and exits with 1 and a traceback.
"""

import difflib
from collections.abc import Iterable


class SordinoError(Exception):
    """A mistake the user can fix.

    problem: one sentence that names the item (file, key, clip id) and what is wrong with it.
    remedy: what to do or run next; empty only where the problem already says it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem} {remedy}".strip())
        self.problem = problem
        self.remedy = remedy


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
