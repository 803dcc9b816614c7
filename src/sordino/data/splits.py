"""Clips to train, select, dev and test, with no talk or speaker in two of them.

A split by random segment puts sentences of one talk on both sides, and scores then measure memory of the talk. So
clips are dealt out by group where it is known and one by one where it is not. The order in which groups are dealt
is that of a hash of (seed, group): the same on every machine, whatever the order of the input, and adding a talk
does not reshuffle the others.

A corpus that is too small for the usual sizes is dealt out by tenths, and a note says so: of 400 clips, three times 100
would leave a quarter to train on.

Dealing is greedy. For test, then dev, then select, groups are taken in that order if they still fit into the
split's size; a split never gets more clips than asked for, and may get fewer where groups are large. What is left
over is train. `split_by="segment"` ignores groups: it leaks, and is there to reproduce results obtained that way.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

from sordino.data.clip import Clip
from sordino.data.corpora.base import SPLITS, Split
from sordino.errors import DataError, RecipeError
from sordino.runtime.terminal import quoted

SplitBy = Literal["group", "segment"]
SHOWN = 10  # groups that an error lists
USUAL = 100  # clips: the size of a split where the recipe names none
DRAWN: tuple[Split, ...] = ("test", "dev", "select")  # in this order; train is the rest


def assign(
    clips: Iterable[Clip],
    sizes: Mapping[str, float],
    seed: int,
    given: Mapping[str, Split] | None = None,
    *,
    split_by: SplitBy = "group",
    fixed: bool = False,
    guessed: bool = False,
    notes: list[str] | None = None,
) -> dict[Split, list[Clip]]:
    """Deal clips into splits -> {split: clips sorted by id}; a split nobody asked for is left out.

    sizes: "select", "dev", "test" -> a number of clips (int) or a share of the clips that are dealt (float between
        0 and 1).
    given: clip id -> split, from the corpus. A split it fills is taken as it is, and its size is not used; the
        others are drawn from the clips given to nothing and, unless they are `fixed`, to train.
    guessed: nobody named the groups: where the sizes cannot be met with them, clips are dealt one by one.
    notes: takes what a user should know of how it was dealt.
    Raises RecipeError for a bad size, DataError for a repeated id, no clips, a group in two given splits, sizes
    beyond the data, and a split that would be empty.
    """
    _check_options(sizes, split_by)
    clips = sorted(clips, key=lambda clip: clip.id)
    if not clips:
        raise DataError("There are no clips to split.")
    _check_ids(clips)
    given = given or {}
    if split_by == "group":
        check_groups(clips, given)
    result: dict[Split, list[Clip]] = defaultdict(list)
    pool: list[Clip] = []
    drawn_from = (None,) if fixed else (None, "train")
    # clips that nobody named go where a clip of their group was named for
    named = {clip.group for clip in clips if clip.group and given.get(clip.id) not in drawn_from}
    for clip in clips:
        split = given.get(clip.id)
        free = split in drawn_from and (split_by == "segment" or clip.group not in named)
        (pool if free else result[split or "train"]).append(clip)
    asked = [split for split in DRAWN if split in sizes and split not in result] if pool else []
    counts = _counts(asked, sizes, _units(pool, seed, split_by), len(result["train"]), [] if notes is None else notes)
    try:
        drawn = _draw(pool, counts, seed, split_by)
    except DataError as error:
        if not guessed or split_by == "segment":
            raise
        if notes is not None:
            notes.append(f"{error.problem} Whole recordings do not fit: clips are dealt one by one, which leaks")
        drawn = _draw(pool, counts, seed, "segment")
    for split, part in drawn.items():
        result[split] += part
    return {split: sorted(result[split], key=lambda clip: clip.id) for split in SPLITS if result[split]}


def _draw(pool: list[Clip], counts: Mapping[Split, int], seed: int, split_by: SplitBy) -> dict[Split, list[Clip]]:
    """The pool, dealt; what is left over is train. Raises DataError for a split that would be empty."""
    units = _units(pool, seed, split_by)
    drawn: dict[Split, list[Clip]] = {}
    for split, count in counts.items():
        drawn[split], units = _fill(split, count, units)
    drawn["train"] = [clip for unit in units for clip in unit]
    return drawn


def check_groups(clips: Iterable[Clip], given: Mapping[str, Split]) -> None:
    """Raise DataError where a group has clips in two given splits, naming all such groups."""
    places: dict[str, dict[Split, str]] = defaultdict(dict)  # group -> split -> a clip of it
    for clip in clips:
        if clip.group is not None:
            places[clip.group].setdefault(given.get(clip.id, "train"), clip.id)
    torn = {group: splits for group, splits in places.items() if len(splits) > 1}
    if not torn:
        return
    told = []
    for group, splits in [*torn.items()][:SHOWN]:
        where = " and ".join(f"in {split} (clip {quoted(one, 60)})" for split, one in splits.items())
        told.append(f"Group {quoted(group, 60)} stands {where}.")
    more = f" So do {len(torn) - SHOWN} more groups." if len(torn) > SHOWN else ""
    raise DataError(
        "\n".join(told) + more,
        "Move the clips of a group into one split in the corpus's split column; a clip without a split counts as "
        "train. Or split by segment (data.splits.by), which leaks.",
    )


def _check_options(sizes: Mapping[str, float], split_by: str) -> None:
    if split_by not in {"group", "segment"}:
        raise RecipeError(f"split_by must be group or segment, found {split_by!r}.")
    for split, size in sizes.items():
        if split not in DRAWN:
            raise RecipeError(f"There is no size for {split!r}.", "Sizes: select, dev, test; train is the rest.")
        count = isinstance(size, int) and not isinstance(size, bool) and size >= 1
        if not count and not (isinstance(size, float) and 0 < size < 1):
            raise RecipeError(
                f"The size of {split} must be a number of clips or a share between 0 and 1, found {size!r}.",
                "To do without that split, leave its size out.",
            )


def _check_ids(clips: list[Clip]) -> None:
    for one, other in itertools.pairwise(clips):
        if one.id == other.id:
            raise DataError(f"Two clips have the id {quoted(one.id)}.", "Give every clip its own id.")


def _counts(
    asked: list[Split], sizes: Mapping[str, float], units: list[list[Clip]], train: int, notes: list[str]
) -> dict[Split, int]:
    """How many clips each split may have of those that are there to be dealt. train: clips that train has already."""
    available = sum(map(len, units))
    counts = {split: _count(split, sizes[split], available) for split in asked}
    room = available if train else available // 2
    if sum(counts.values()) > room and USUAL in (sizes[split] for split in asked):
        share = available // len(asked) if train else available // 10
        share = max(share, *sorted(map(len, units))[: len(asked)])  # a group at least
        small = {split: share if sizes[split] == USUAL else count for split, count in counts.items()}
        notes.append(
            f"{available:,} clips are too few for {_listing(counts)}: dealt are {_listing(small)}. "
            "Other sizes or shares: data.splits"
        )
        counts = small
    rest = available - sum(counts.values())
    if counts and rest <= 0 and not train:
        problem = f"{available:,} clips cannot be dealt into {_listing(counts)} and leave any for train."
        raise DataError(problem, "Ask for fewer clips.")
    if counts and 2 * rest < available and not train:
        notes.append(f"only {rest:,} of {available:,} clips are left to train on")
    return counts


def _listing(counts: Mapping[Split, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())


def _count(split: str, size: float, available: int) -> int:
    count = size if isinstance(size, int) else round(size * available)
    if count < 1:
        raise DataError(f"{split} would be empty: {size:g} of {available:,} clips.", "Ask for a larger share.")
    return count


def _units(clips: list[Clip], seed: int, split_by: SplitBy) -> list[list[Clip]]:
    """What may not be torn apart, in the seed's order: groups, and clips without one."""
    units: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        grouped = clip.group is not None and split_by == "group"
        units[("group", clip.group or "") if grouped else ("id", clip.id)].append(clip)

    def rank(key: tuple[str, str]) -> bytes:
        return hashlib.sha256("\0".join((str(seed), *key)).encode()).digest()

    return [units[key] for key in sorted(units, key=rank)]


def _fill(split: str, count: int, units: list[list[Clip]]) -> tuple[list[Clip], list[list[Clip]]]:
    """Take units that fit, in order, until there are `count` clips -> (taken clips, units left)."""
    taken: list[Clip] = []
    rest: list[list[Clip]] = []
    for unit in units:
        if len(taken) + len(unit) <= count:
            taken += unit
        else:
            rest.append(unit)
    if not taken:
        smallest = min((len(unit) for unit in units), default=0)
        raise DataError(
            f"{split} would be empty: it may have {count:,} clips and the smallest group left has {smallest:,}.",
            "Ask for a larger split, or give the corpus a split column.",
        )
    return taken, rest
