"""What every corpus reader returns: clips, the splits it came with, and the rows it could not use."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from sordino.data.clip import Clip

Split = Literal["train", "select", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)  # train; select ranks layers; dev steers training; test is touched last


@dataclass(frozen=True)
class BadRow:
    """A row of a corpus that was left out: its id (or audio, or line, where it has none) and why."""

    id: str
    problem: str


@dataclass(frozen=True)
class Corpus:
    """clips: usable rows in the table's order, ids unique, audio not yet decoded (see checks.check_audio).

    splits: clip id -> split, for the clips whose corpus assigns one. problems: one for each row left out.
    """

    clips: tuple[Clip, ...]
    splits: Mapping[str, Split]
    problems: tuple[BadRow, ...]


class Loader(Protocol):
    """A corpus reader. path: the corpus on disk; texts: which table, where there are several."""

    def __call__(self, path: str | Path, source_lang: str, target_lang: str, texts: str | None = None) -> Corpus: ...
