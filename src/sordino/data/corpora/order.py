"""FILE_ORDER: the recordings of a test set, one name a line, in the order in which its texts and outputs stand.

Names may be file names (talk_1.wav), names without a suffix (talk_1), or have one of another kind (talk_1.en). A name
that is no recording's is an error: an order of names that never match would be no order at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from sordino.errors import DataError
from sordino.runtime import foreign
from sordino.runtime.terminal import printable

NAME = "FILE_ORDER"
SHOWN = 5  # names that an error lists


def read(file: Path) -> list[str]:
    """The names in a file, without directories. Raises DataError for one that cannot be read, or names one twice."""
    names = [PurePath(line.strip()).name for line in foreign.lines(file) if line.strip()]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{file} names {_listing(twice)} twice.", "Leave each recording's name on one line.")
    return names


def ranks(file: Path, recordings: Iterable[str], silent: Iterable[str] = ()) -> dict[str, int]:
    """Place in the order of each recording, given as file names. Raises DataError where the two are not of one set.

    silent: recordings that may be named too, since they are there and have no segments.
    """
    recordings = list(dict.fromkeys(recordings))
    find = _finder([*recordings, *silent])
    names = read(file)
    of = {name: find(name) for name in names}
    places: dict[str, int] = {}
    for rank, name in enumerate(names):
        recording = of[name]
        if recording in places:
            raise DataError(f"{file} names {printable(str(recording))} twice.", "Leave each name on one line.")
        if recording is not None:
            places[recording] = rank
    problems = {
        "it does not name": [one for one in recordings if one not in places],
        "nothing is there of": [name for name in names if of[name] is None],
    }
    if any(problems.values()):
        told = "; ".join(f"{what} {_listing(which)}" for what, which in problems.items() if which)
        raise DataError(f"{file} and the recordings disagree: {told}.", "Is the test set complete, and of one piece?")
    return {one: places[one] for one in recordings}


def _finder(recordings: list[str]) -> Callable[[str], str | None]:
    """Name -> recording: by the whole name, else by the name as a stem, else by the name's own stem."""
    stems: dict[str, str | None] = {}
    for recording in dict.fromkeys(recordings):
        stem = PurePath(recording).stem
        stems[stem] = None if stem in stems else recording  # of two, it is not known which is meant
    return lambda name: name if name in recordings else stems.get(name) or stems.get(PurePath(name).stem)


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more
