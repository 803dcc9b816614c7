"""What stands in two splits, after they were dealt: scores on it measure memory, and nobody may have meant it.

Groups are kept whole by splits.py. These are notes about what groups do not say: slices of one recording, one sentence
twice, one sound under two names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from sordino.data.clip import Clip
from sordino.runtime.prints import fingerprint_sampled
from sordino.runtime.terminal import printable

TRAINED = ("train", "extra")
RECORDINGS = "recordings"
SHOWN = 3  # examples of each kind
EXAMPLE = 60  # characters of one


def notes(dealt: Mapping[str, Sequence[Clip]]) -> list[str]:
    """One sentence for each kind of leak. dealt: split -> clips; extra clips for training may be one of them."""
    leaks = [
        _note(dealt, RECORDINGS, lambda clip: clip.audio, lambda clip: Path(clip.audio).name),
        _note(dealt, "sounds", _sound(dealt), lambda clip: clip.id),
        _note(dealt, "sentences", _sentence, lambda clip: clip.target_text or clip.id),
    ]
    return [note for note in leaks if note]


def _note(
    dealt: Mapping[str, Sequence[Clip]], what: str, key: Callable[[Clip], Hashable], name: Callable[[Clip], str]
) -> str | None:
    """Keys with clips to train on and clips that are held out, or in two held-out splits."""
    places: dict[Hashable, dict[str, Clip]] = defaultdict(dict)
    for split, clips in dealt.items():
        for clip in clips:
            if (value := key(clip)) is not None:
                places[value].setdefault("train" if split in TRAINED else split, clip)
    torn = [splits for splits in places.values() if len(splits) > 1]
    if not torn:
        return None
    shown = [f"{printable(name(next(iter(one.values()))), EXAMPLE)} in {' and '.join(one)}" for one in torn[:SHOWN]]
    more = f", and {len(torn) - SHOWN:,} more" if len(torn) > SHOWN else ""
    return f"{what} in several splits: {len(torn):,} ({'; '.join(shown)}{more}); scores on them measure memory"


def _sentence(clip: Clip) -> Hashable:
    return (clip.source_text, clip.target_text) if clip.source_text and clip.target_text else clip.target_text


def _sound(dealt: Mapping[str, Sequence[Clip]]) -> Callable[[Clip], Hashable]:
    """Tells sounds apart by the bytes of their files, of those alone whose size others have too."""
    sizes: dict[int, set[str]] = defaultdict(set)
    for audio in {clip.audio for clip in _all(dealt)}:
        sizes[Path(audio).stat().st_size].add(audio)
    prints = {audio: fingerprint_sampled(Path(audio)) for same in sizes.values() if len(same) > 1 for audio in same}
    names: dict[str, set[str]] = defaultdict(set)
    for audio, digest in prints.items():
        names[digest].add(audio)
    twice = {audio: digest for audio, digest in prints.items() if len(names[digest]) > 1}
    return lambda clip: (twice[clip.audio], clip.start, clip.seconds) if clip.audio in twice else None


def _all(dealt: Mapping[str, Sequence[Clip]]) -> Iterable[Clip]:
    for clips in dealt.values():
        yield from clips
