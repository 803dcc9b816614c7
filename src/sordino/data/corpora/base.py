"""What every corpus reader returns: clips, the splits it came with, and the rows it could not use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.languages import spellings
from sordino.runtime.terminal import quoted

Split = Literal["train", "select", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)  # train; select ranks layers; dev steers training; test is touched last
SHOWN = 12  # names of a directory that an error lists
AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff"}
JUNK = "__MACOSX"  # beside hidden files (._talk.wav, .DS_Store) what macOS leaves in archives and on other disks


@dataclass(frozen=True)
class BadRow:
    """A row of a corpus that was left out: its id (or audio, or line, where it has none) and why."""

    id: str
    problem: str


@dataclass(frozen=True)
class Corpus:
    """clips: usable rows in the table's order, ids unique, audio not yet decoded (see checks.check_audio).

    splits: clip id -> split, for the clips whose corpus assigns one. problems: one for each row left out.
    notes: what a user should know of how the corpus was read. own_splits: the splits are the user's words, and nothing
    is drawn from the clips that they name; of a published corpus's train part, select may be. guessed_groups: no column
    names the groups, and they are the recordings.
    """

    clips: tuple[Clip, ...]
    splits: Mapping[str, Split]
    problems: tuple[BadRow, ...]
    notes: tuple[str, ...] = ()
    own_splits: bool = False
    guessed_groups: bool = False

    def of(self, split: Split) -> list[Clip]:
        """The clips of one split, where the corpus assigns them."""
        return [clip for clip in self.clips if self.splits.get(clip.id) == split]


class Loader(Protocol):
    """A corpus reader. path: the corpus on disk; texts: which table, where there are several; settings: its own."""

    def __call__(
        self, path: str | Path, source_lang: str, target_lang: str, texts: str | None = None, **settings: Any
    ) -> Corpus: ...


class Rows:
    """Collects a corpus row by row: a row that raises DataError becomes a problem, not the end."""

    def __init__(self) -> None:
        self.clips: dict[str, Clip] = {}
        self.splits: dict[str, Split] = {}
        self.problems: list[BadRow] = []

    def add(self, name: str, where: str, make: Callable[[], Clip], split: Split | None = None) -> None:
        """name: of the row, should it fail; where: put in front of the problem, as in 'train.tsv:7: '."""
        try:
            clip = make()
            if clip.id in self.clips:
                first = self.clips[clip.id]
                problem = f"{clip.audio}: id {quoted(clip.id)} is taken by {first.audio} ({first.start:g} s)."
                raise DataError(problem, "Give every clip its own id.")
        except DataError as error:
            self.problems.append(BadRow(name, where + str(error)))
            return
        self.clips[clip.id] = clip
        if split is not None:
            self.splits[clip.id] = split

    def corpus(self) -> Corpus:
        return Corpus(tuple(self.clips.values()), self.splits, tuple(self.problems))


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds ("**/*": its folders too), sorted; side files of systems and programs are passed over."""
    items = folder.glob(pattern) if folder.is_dir() else iter(())
    parts = ((item, item.relative_to(folder).parts) for item in items)
    return sorted(item for item, names in parts if not any(name.startswith(".") or name == JUNK for name in names))


def text_of(listing: Path, language: str) -> Path:
    """The texts beside a list, by the language's spelling that is there: tst.zh-CN, else tst.zh."""
    files = [listing.parent / f"{listing.stem}.{spelling}" for spelling in spellings(language)]
    return next((file for file in files if file.is_file()), files[-1])


def wrong_layout(corpus: str, path: Path, expected: str, missing: str = "") -> DataError:
    """A DataError that shows what the corpus looks like on disk and what is there instead."""
    if not path.is_dir():
        contents = "no such directory" if not path.exists() else "a file, not a directory"
    else:
        names = [item.name + "/" * item.is_dir() for item in visible(path)]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        contents = ", ".join(names[:SHOWN]) + more if names else "nothing"
    lacking = f": {missing}" if missing else ""
    return DataError(
        f"{path} does not hold {corpus} as it is published{lacking}.",
        f"\nFound there: {contents}\nExpected:\n{expected}",
    )


def choose_subsets(corpus: str, path: Path, there: list[str], subsets: tuple[str, ...]) -> list[str]:
    """The corpus's own parts to read, in its order; DataError for one that is not there."""
    for name in subsets:
        if name not in there:
            raise DataError(
                f"{path} has no part {name!r} of {corpus}.", f"Found: {', '.join(there)}. Name them in 'subsets'."
            )
    return [name for name in there if not subsets or name in subsets]
