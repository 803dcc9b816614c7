"""A look at somebody's folder of audio before there is a recipe: what is there, how much of it, and what is missing.

Audio is not decoded: lengths come from the table or from the headers of the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sordino.data.audio import duration
from sordino.data.clip import MIN_SECONDS, Clip
from sordino.data.corpora import folder as corpus_folder
from sordino.data.corpora.base import AUDIO_SUFFIXES, BadRow, Corpus, Split, visible
from sordino.data.corpora.table import SUFFIXES, Table, find, read
from sordino.errors import DataError, UsageError
from sordino.languages import NAMES, language_code, language_name

TEXT = "text_"  # in front of a language's code: a column of texts
SPOKEN = "en"  # taken for the language of the audio where nothing says which it is
DEPTH = 2  # directories below the one that is searched
STAGE_FILE = "stage.json"  # in what sordino itself has written


@dataclass(frozen=True)
class Survey:
    """folder: as it was named; table: its file. source, target: codes. assumed: whether no column says what is spoken.

    corpus: as the folder reader reads it. clips: those whose length is known, with it; unreadable: the others.
    unlisted: audio files that no row names. seconds: of all clips.
    """

    folder: Path
    table: Path
    source: str
    target: str
    assumed: bool
    corpus: Corpus
    clips: tuple[Clip, ...]
    unreadable: tuple[BadRow, ...]
    unlisted: tuple[Path, ...]

    @property
    def seconds(self) -> float:
        return sum(clip.seconds or 0.0 for clip in self.clips)

    @property
    def longest(self) -> float:
        return max((clip.seconds or 0.0 for clip in self.clips), default=0.0)

    @property
    def groups(self) -> int:
        """Talks or speakers; 0 where no clip has one."""
        return len({clip.group for clip in self.clips if clip.group})

    @property
    def given(self) -> Mapping[str, Split]:
        """Clip id -> split, of the table."""
        return self.corpus.splits

    def outside(self, window: float) -> tuple[list[Clip], list[Clip]]:
        """Clips that are longer than `window` seconds, and those that are too short to be heard."""
        longer = [clip for clip in self.clips if (clip.seconds or 0.0) > window]
        return longer, [clip for clip in self.clips if (clip.seconds or 0.0) < MIN_SECONDS]


def corpora_below(directory: Path) -> list[Path]:
    """Folders that hold a table and audio, at most DEPTH below a directory; what sordino wrote is none."""
    return [folder for folder in (directory, *_folders(directory, DEPTH)) if _is_corpus(folder)]


def _folders(directory: Path, depth: int) -> Iterator[Path]:
    for folder in visible(directory):
        if depth and folder.is_dir() and not (folder / STAGE_FILE).exists():
            yield folder
            yield from _folders(folder, depth - 1)


def tables(folder: Path) -> list[Path]:
    return [item for item in visible(folder) if item.suffix.lower() in SUFFIXES and item.is_file()]


def _is_corpus(folder: Path) -> bool:
    items = (*visible(folder), *visible(folder, "*/*"))
    return bool(tables(folder)) and any(item.suffix.lower() in AUDIO_SUFFIXES for item in items)


def survey(
    folder: Path,
    source: str | None = None,
    target: str | None = None,
    texts: str | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Survey:
    """Look at a folder of audio and its table.

    source, target: languages, where the columns leave open which they are. advance: called with 1 after each clip.
    Raises DataError as the folder reader does and where nothing can be used; UsageError where languages are not known.
    """
    table = read(find(folder, texts))
    assumed = source is None and SPOKEN not in _codes(table)
    source, target = languages(table, source, target)
    corpus = corpus_folder.load(folder, source, target, texts)
    clips, unreadable = [], []
    for clip in corpus.clips:
        try:
            seconds = duration(clip.audio) - clip.start if clip.seconds is None else clip.seconds
        except DataError as error:
            unreadable.append(BadRow(clip.id, str(error)))
        else:
            clips.append(replace(clip, seconds=seconds))
        advance(1)
    if not clips:
        problems = [row.problem for row in (*corpus.problems, *unreadable)]
        raise DataError(f"{folder} holds no usable clip.", problems[0] if problems else "")
    named = {Path(clip.audio) for clip in corpus.clips}
    files = (item for item in visible(folder.absolute(), "**/*") if item.suffix.lower() in AUDIO_SUFFIXES)
    unlisted = tuple(item for item in files if item not in named)
    return Survey(folder, table.path, source, target, assumed, corpus, tuple(clips), tuple(unreadable), unlisted)


def _codes(table: Table) -> list[str]:
    """Languages that a table has a column of texts for, in its order."""
    codes = (language_code(name[len(TEXT) :]) for name in table.columns if name.casefold().startswith(TEXT))
    return list(dict.fromkeys(code for code in codes if code in NAMES))


def languages(table: Table, source: str | None, target: str | None) -> tuple[str, str]:
    """Codes of what is spoken and what is written, from the columns. Raises UsageError where they leave it open."""
    codes = _codes(table)
    source = language_code(source) if source else SPOKEN
    if target:
        return source, language_code(target)
    others = [code for code in codes if code != source]
    if len(others) == 1:
        return source, others[0]
    if others:
        names = ", ".join(language_name(code) for code in others)
        raise UsageError(
            f"{table.path} has translations into {names}.", f"Say which: --to {others[0]} (and --from, of the audio)."
        )
    if codes:
        raise UsageError(
            f"{table.path} has texts in {language_name(codes[0])} alone, which is taken for what is spoken.",
            f"Add a column of translations, e.g. text_de; or say --from LANGUAGE --to {codes[0]}.",
        )
    raise UsageError(
        f"{table.path} does not say in which language its translations are.",
        f"Say it: --to LANGUAGE. {table.listing()}",
    )
