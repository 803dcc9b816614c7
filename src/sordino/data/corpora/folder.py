"""Your own data: a folder of audio files and one table of texts.

    talks/
      texts.tsv          audio  start  seconds  talk_id  split  text_en  text_de
      wav/ted_1.wav

Columns: `audio` (path inside the folder) and the target text, as `text_<code>` (text_de) or `target_text`; and, if
there: `id` (else the path without its suffix, with the start where there is one), the source text (`text_en` or
`source_text`), `start` and `seconds` (of a slice), `group` (or `talk_id`, or `speaker`), `split` (train, select,
dev, test). Other columns are passed over. Rows that cannot be used are listed, not raised one at a time.
"""

import os
from pathlib import Path, PurePath

from sordino.data.clip import Clip
from sordino.data.corpora.base import SPLITS, BadRow, Corpus, Split
from sordino.data.corpora.table import Row, Table, find, read
from sordino.errors import DataError
from sordino.languages import language_code

GROUP_COLUMNS = ("group", "talk_id", "speaker")  # the first that the table has


def load(path: str | Path, source_lang: str, target_lang: str, texts: str | None = None) -> Corpus:
    """Read a folder corpus. texts: the table's name inside the folder, where it holds several.

    Raises DataError for no table or several, a table that is not UTF-8 or has no rows, and a missing column. An
    absent audio file, an audio path out of the folder, an empty target text, a bad number, an unknown split and a
    repeated id are `problems` of the row.
    """
    folder = Path(path).absolute()
    table = read(find(folder, texts))
    reader = _Columns(table, source_lang, target_lang)
    clips: dict[str, Clip] = {}
    splits: dict[str, Split] = {}
    problems: list[BadRow] = []
    for row in table.rows:
        where = f"{table.path.name}:{row.line}: "
        try:
            clip, split = reader.clip(folder, row)
            if clip.id in clips:
                raise DataError(f"id {clip.id!r} is taken by an earlier row.", "Add an 'id' column of unique ids.")
        except DataError as error:
            problems.append(BadRow(_name(row), where + str(error)))
            continue
        clips[clip.id] = clip
        if split is not None:
            splits[clip.id] = split
    return Corpus(tuple(clips.values()), splits, tuple(problems))


class _Columns:
    """Which column of a table holds what."""

    def __init__(self, table: Table, source_lang: str, target_lang: str) -> None:
        self.languages = source_lang, target_lang
        self.source = _first(table, f"text_{language_code(source_lang)}", "source_text")
        names = f"text_{language_code(target_lang)}", "target_text"
        target = _first(table, *names)
        self.group = _first(table, *GROUP_COLUMNS)
        lacking = [] if "audio" in table.columns else ["'audio'"]
        if target is None:
            lacking.append(" or ".join(map(repr, names)))
        if target is None or lacking:
            raise DataError(
                f"{table.path} lacks the column {' and '.join(lacking)}.",
                f"Found: {', '.join(table.columns) or 'none'}.",
            )
        self.target = target

    def clip(self, folder: Path, row: Row) -> tuple[Clip, Split | None]:
        """The row's clip and the split it asks for; DataError for what is wrong with it."""
        if row.problem:
            raise DataError(f"{row.problem}.")
        relative = _inside(_text(row, "audio"))
        target = _text(row, self.target)
        if not target:
            raise DataError(f"the target text ({self.target}) is empty.")
        start, seconds = _number(row, "start"), _number(row, "seconds")
        clip = Clip.from_json(
            {
                "id": _text(row, "id") or default_id(relative, start),
                "audio": str(folder / relative),
                "start": start,
                "seconds": seconds,
                "source_lang": self.languages[0],
                "target_lang": self.languages[1],
                "source_text": _text(row, self.source) or None,
                "target_text": target,
                "group": _text(row, self.group) or None,
            }
        )
        if not os.path.isfile(clip.audio):  # noqa: PTH113 (Path.is_file raises where a name is too long)
            raise DataError(f"{relative} is not a file in the folder.")
        split = _text(row, "split")
        if split and split not in SPLITS:
            raise DataError(f"split {split!r} is none of {', '.join(SPLITS)}.")
        return clip, next((known for known in SPLITS if known == split), None)


def default_id(relative: PurePath, start: float | None) -> str:
    """'wav/ted_1.wav' -> 'wav/ted_1', and with a start of 12.5 seconds 'wav/ted_1-12.500'."""
    stem = relative.with_suffix("").as_posix()
    return stem if start is None else f"{stem}-{start:.3f}"


def _inside(audio: str) -> PurePath:
    """The audio path in normal form; DataError where it leaves the folder (links inside are followed)."""
    relative = PurePath(os.path.normpath(audio))
    if not relative.parts:
        raise DataError("the audio path is empty.")
    if relative.is_absolute() or relative.parts[0] == os.pardir:
        raise DataError(f"the audio path {audio!r} leads out of the folder.", "Write it relative to the folder.")
    return relative


def _first(table: Table, *names: str) -> str | None:
    return next((name for name in names if name in table.columns), None)


def _text(row: Row, column: str | None) -> str:
    return row.cells.get(column, "").strip() if column else ""


def _number(row: Row, column: str) -> float | None:
    text = _text(row, column)
    try:
        return float(text) if text else None
    except ValueError:
        raise DataError(f"{column} must be a number of seconds, found {text!r}.") from None


def _name(row: Row) -> str:
    name = _text(row, "id") or _text(row, "audio") or f"line {row.line}"
    return name.encode("utf-8", "replace").decode()  # half a surrogate pair could not be printed
