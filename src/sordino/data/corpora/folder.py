"""Your own data: a folder of audio files and one table of texts.

    talks/
      texts.tsv          audio  start  seconds  talk_id  split  text_en  text_de
      wav/ted_1.wav

Columns: `audio` (path inside the folder) and the target text, as `text_<code>` (text_de) or `target_text`; and, if
there: `id` (else the path without its suffix, with the start where there is one), the source text (`text_en` or
`source_text`), `start` and `seconds` (of a slice), `group` (or `talk_id`, or `speaker`), `split` (train, select,
dev, test). Where these are missing, the names that other tools write are taken: see ALSO. Other columns are passed
over. Rows that cannot be used are listed, not raised one at a time.

Clips of one recording that no column puts into a group, nor into several splits, are a group: a split between them
would test on talks that were trained on.
"""

import difflib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from sordino.data.clip import Clip
from sordino.data.corpora.base import SPLITS, BadRow, Corpus, Split
from sordino.data.corpora.table import Row, Table, find, read
from sordino.errors import DataError
from sordino.languages import NAMES, language_code, spellings
from sordino.runtime.terminal import printable, quoted

GROUP_COLUMNS = ("group", "talk_id", "speaker", "speaker_id", "client_id")  # the first that the table has
# names of Common Voice and CoVoST, of fairseq's and NeMo's manifests, of audio folders on the Hub
ALSO = {
    "audio": ("path", "audio_path", "audio_filepath", "file_name", "filename", "file", "wav"),
    "source_text": ("sentence", "transcription", "transcript", "src_text"),
    "target_text": ("translation", "tgt_text"),
}  # and `offset` with `duration`, in seconds
QUOTED = '"'
LOOKED_AT = 1000  # columns among which a near name is looked for


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
                raise DataError(
                    f"id {quoted(clip.id)} is taken by an earlier row.", "Add an 'id' column of unique ids."
                )
        except DataError as error:
            problems.append(BadRow(_name(row), where + str(error)))
            continue
        clips[clip.id] = clip
        if split is not None:
            splits[clip.id] = split
    notes = [*reader.notes, *_quoting(table, [reader.source, reader.target])]
    grouped = _group_by_recording(list(clips.values()), folder, splits)
    return Corpus(
        tuple(grouped), splits, tuple(problems), tuple(notes), own_splits=True, guessed_groups=not reader.group
    )


def check(path: str | Path, source_lang: str, target_lang: str, texts: str | None = None) -> None:
    """Raise DataError for what `load` refuses of the table as a whole."""
    _Columns(read(find(Path(path).absolute(), texts)), source_lang, target_lang)


class _Columns:
    """Which column of a table holds what. notes: columns that go by other names."""

    def __init__(self, table: Table, source_lang: str, target_lang: str) -> None:
        self.table, self.languages = table, (source_lang, target_lang)
        self.notes: list[str] = []
        audio = self._column("audio")
        self.source = self._text(source_lang, "source_text")
        target = self._text(target_lang, "target_text")
        self.start: str | None = "start" if "start" in table.columns else None
        self.seconds: str | None = "seconds" if "seconds" in table.columns else None
        if self.start is None and self.seconds is None and {"offset", "duration"} <= {*table.columns}:
            self.start, self.seconds = "offset", "duration"
            self.notes.append(f"{table.path.name}: the columns offset and duration are read as start and seconds")
        self.group = next((name for name in GROUP_COLUMNS if name in table.columns), None)
        if audio is None or target is None:
            names = ["audio"] if audio is None else []
            names += [f"text_{language_code(target_lang)}", "target_text"] if target is None else []
            others = [name for name in table.columns[:LOOKED_AT] if _language_of(name) not in NAMES]
            near = [match for name in names for match in difflib.get_close_matches(name, others, 1)]
            hint = f" Did you mean {quoted(near[0], 60)}?" if near else ""
            lacking = ["'audio'"] if audio is None else []
            lacking += [" or ".join(map(repr, names[-2:]))] if target is None else []
            raise DataError(f"{table.path} lacks the column {' and '.join(lacking)}.", table.listing() + hint)
        self.audio, self.target = audio, target

    def _column(self, role: str) -> str | None:
        """The column of this name, else one that other tools call so."""
        if role in self.table.columns:
            return role
        capital = (name for name in self.table.columns if name.casefold() == role)
        name = next(capital, None) or next((name for name in ALSO[role] if name in self.table.columns), None)
        if name is not None:
            self.notes.append(f"{self.table.path.name}: the column {printable(name)} is read as {role}")
        return name

    def _text(self, language: str, role: str) -> str | None:
        """The column of a language's texts: text_zh-CN, text_zh, text_chinese; else that of the role."""
        for spelling in spellings(language):
            if f"text_{spelling}" in self.table.columns:
                return f"text_{spelling}"
        same = [name for name in self.table.columns if _language_of(name) == language_code(language)]
        return same[0] if len(same) == 1 else self._column(role)

    def clip(self, folder: Path, row: Row) -> tuple[Clip, Split | None]:
        """The row's clip and the split it asks for; DataError for what is wrong with it."""
        if row.problem:
            raise DataError(f"{row.problem}.")
        relative = _inside(_text(row, self.audio))
        target = _text(row, self.target)
        if not target:
            raise DataError(f"the target text ({self.target}) is empty.")
        start = _number(row, self.start)
        clip = Clip.from_json(
            {
                "id": _text(row, "id") or default_id(relative, start),
                "audio": str(folder / relative),
                "start": start,
                "seconds": _number(row, self.seconds),
                "source_lang": self.languages[0],
                "target_lang": self.languages[1],
                "source_text": _text(row, self.source) or None,
                "target_text": target,
                "group": _text(row, self.group) or None,
            }
        )
        if not os.path.isfile(clip.audio):  # noqa: PTH113 (Path.is_file raises where a name is too long)
            raise DataError(f"{printable(str(relative))} is not a file in the folder.")
        split = _text(row, "split")
        if split and split not in SPLITS:
            raise DataError(f"split {quoted(split, 60)} is none of {', '.join(SPLITS)}.")
        return clip, next((name for name in SPLITS if name == split), None)


def _language_of(column: str) -> str | None:
    """'text_de-AT' -> 'de'; None for a column of no language."""
    name = column.casefold()
    return language_code(name[5:]) if name.startswith("text_") else None


def _group_by_recording(clips: list[Clip], folder: Path, splits: Mapping[str, Split]) -> list[Clip]:
    """Clips without a group that share a recording become one, named by it; not those that the table puts apart."""
    places: dict[str, list[Split | None]] = defaultdict(list)
    for clip in clips:
        if clip.group is None:
            places[clip.audio].append(splits.get(clip.id))
    return [
        replace(clip, group=Path(clip.audio).relative_to(folder).as_posix())
        if clip.group is None and len(places[clip.audio]) > 1 and len({*places[clip.audio]}) == 1
        else clip
        for clip in clips
    ]


def _quoting(table: Table, columns: Sequence[str | None]) -> list[str]:
    """A note where cells of a TSV are quoted as spreadsheets and pandas do it: the marks are part of the texts."""
    if table.path.suffix.lower() != ".tsv":
        return []
    texts = [row.cells.get(column, "") for column in columns if column for row in table.rows]
    marked = [text for text in texts if len(text) > 1 and text[0] == text[-1] == QUOTED and QUOTED in text[1:-1]]
    paired = [text for text in marked if text[1:-1].replace(2 * QUOTED, "").count(QUOTED) == 0]
    if not paired or len(paired) < len(marked):
        return []
    return [
        f"{table.path.name}: {len(paired)} texts look quoted, as {printable(paired[0], 60)}, and a TSV has no quoting: "
        "the marks stay. Save the table as .csv if they are not meant."
    ]


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
        raise DataError(f"the audio path {quoted(audio)} leads out of the folder.", "Write it relative to the folder.")
    return relative


def _text(row: Row, column: str | None) -> str:
    return row.cells.get(column, "").strip() if column else ""


def _number(row: Row, column: str | None) -> float | None:
    text = _text(row, column)
    try:
        return float(text) if text else None
    except ValueError:
        raise DataError(f"{column} must be a number of seconds, found {quoted(text, 60)}.") from None


def _name(row: Row) -> str:
    return printable(_text(row, "id") or _text(row, "audio") or f"line {row.line}")
