"""CoVoST 2: Common Voice recordings (version 4) with translations, from English into 15 languages and from 21 into it.

    covost2/
      covost_v2.en_de.train.tsv  .dev.tsv  .test.tsv    path  sentence  translation  client_id
      clips/common_voice_en_1.mp3 ...                   (or en/clips/, as Common Voice is unpacked)

These tables are what the `get_covost_splits.py` of CoVoST writes. Without them the published translations and Common
Voice's own table are joined in the same way:

      covost_v2.en_de.tsv                               path  translation  split
      validated.tsv                                     client_id  path  sentence  ...   (beside clips/)

The group is the speaker (client_id). The tables' splits are kept: train (with train_covost), dev, test. Chinese is
zh-CN and Swedish sv-SE in file names. The tables have no quoting; a backslash escapes.
"""

import csv
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sordino.data.clip import Clip
from sordino.data.corpora.base import SHOWN, BadRow, Corpus, Rows, Split, choose_subsets, wrong_layout
from sordino.errors import DataError
from sordino.languages import language_code
from sordino.runtime import foreign

NAME = "CoVoST 2"
PARTS: dict[str, Split] = {"train": "train", "dev": "dev", "test": "test"}
CODES = {"zh": "zh-CN", "sv": "sv-SE"}  # Common Voice's codes where they are not ISO 639-1
SPLIT_TABLE = "path", "sentence", "translation", "client_id"
TRANSLATIONS = "path", "translation", "split"
COMMON_VOICE = "path", "sentence", "client_id"


def load(
    path: str | Path,
    source_lang: str,
    target_lang: str,
    texts: str | None = None,
    *,
    subsets: tuple[str, ...] = (),
) -> Corpus:
    """Read one direction of CoVoST 2. subsets: train, dev, test, or all where empty.

    Raises DataError for another layout (showing this one), another direction, a table that is not UTF-8 and a missing
    column. A missing recording, an empty translation and a row of another width are `problems` of the row.
    """
    folder = Path(path).absolute()
    if texts is not None:
        raise DataError(f"{NAME}'s tables go by their names, but 'texts' says {texts!r}.", "Use 'subsets' instead.")
    languages = source_lang, target_lang
    source, target = (CODES.get(code, code) for code in map(language_code, languages))
    stem = f"covost_v2.{source}_{target}"
    layout = _layout(stem, source)
    roots = [folder, folder / source, *sorted(folder.glob(f"cv-corpus-*/{source}"))] if folder.is_dir() else []
    clips = next((root / "clips" for root in roots if (root / "clips").is_dir()), None)
    if clips is None:
        raise wrong_layout(NAME, folder, layout, "there is no clips directory")
    tables = {part: folder / f"{stem}.{part}.tsv" for part in PARTS if (folder / f"{stem}.{part}.tsv").is_file()}
    whole = folder / f"{stem}.tsv"
    rows = Rows()
    if tables:
        for part in choose_subsets(NAME, folder, list(tables), subsets):
            for line, cells in _read(tables[part], SPLIT_TABLE):
                _add(rows, f"{tables[part].name}:{line}: ", cells, clips, languages, PARTS[part])
    elif whole.is_file():
        validated = clips.parent / "validated.tsv"
        if not validated.is_file():
            raise wrong_layout(NAME, folder, layout, f"there is no validated.tsv beside {clips}")
        _join(rows, whole, validated, clips, languages, choose_subsets(NAME, folder, list(PARTS), subsets))
    else:
        other = sorted(item.name for item in folder.glob("covost*_*.tsv"))
        hint = f"there is {', '.join(other)}, but no {stem}*.tsv" if other else f"there is no {stem}*.tsv"
        raise wrong_layout(NAME, folder, layout, hint)
    return rows.corpus()


def _layout(stem: str, source: str) -> str:
    return (
        f"  {stem}.{{train,dev,test}}.tsv    columns: {', '.join(SPLIT_TABLE)}\n"
        f"  clips/*.mp3 (or {source}/clips/*.mp3)\n"
        f"or, instead of these tables:\n"
        f"  {stem}.tsv                     columns: {', '.join(TRANSLATIONS)}\n"
        f"  validated.tsv beside clips/    columns: {', '.join(COMMON_VOICE)}"
    )


def _read(table: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, the cells asked for) of each row, streamed; no cells for a row of another width than the header."""
    reader = csv.reader(
        (line + "\n" for line in foreign.lines(table)), delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\"
    )
    try:
        header = [cell.strip() for cell in next(reader, [])]
        lacking = [name for name in columns if name not in header]
        if lacking:
            problem = f"{table} lacks the column {' and '.join(map(repr, lacking))}."
            raise DataError(problem, f"Found: {', '.join(header[:SHOWN]) or 'none'}.")
        places = [(name, header.index(name)) for name in columns]
        for cells in reader:
            if cells:
                usable = len(cells) == len(header)
                yield reader.line_num, {name: cells[place] for name, place in places} if usable else {}
    except csv.Error as error:
        raise DataError(f"{table}:{reader.line_num}: {error}.", "Fetch it again.") from None


def _join(rows: Rows, whole: Path, validated: Path, clips: Path, languages: tuple[str, str], parts: list[str]) -> None:
    """Translations joined with Common Voice's sentences and speakers by the recording, in Common Voice's order."""
    translations: dict[str, tuple[str, Split]] = {}
    for line, cells in _read(whole, TRANSLATIONS):
        part = cells.get("split", "").removesuffix("_covost")
        if not cells:
            rows.problems.append(BadRow(f"line {line}", f"{whole.name}:{line}: not as many cells as columns."))
        elif part in parts and (part == "train" or cells["split"] == part):  # dev and test are Common Voice's own
            translations[cells["path"]] = cells["translation"], PARTS[part]
    for line, cells in _read(validated, COMMON_VOICE):
        translation = translations.pop(cells["path"], None) if cells else None
        if translation is not None:
            translated = cells | {"translation": translation[0]}
            _add(rows, f"{validated.name}:{line}: ", translated, clips, languages, translation[1])
    rows.problems += [BadRow(name, f"{whole.name}: {name} is not in {validated}.") for name in translations]


def _add(rows: Rows, where: str, cells: dict[str, str], clips: Path, languages: tuple[str, str], split: Split) -> None:
    name = Path(cells.get("path", "")).stem or where.rstrip(": ")
    rows.add(name, where, partial(_clip, name, cells, clips, languages), split)


def _clip(name: str, cells: dict[str, str], clips: Path, languages: tuple[str, str]) -> Clip:
    if not cells:
        raise DataError("not as many cells as columns.")
    if not cells["translation"].strip():
        raise DataError("the translation is empty.")
    audio = os.path.join(clips, cells["path"])  # noqa: PTH118 (a Path for each of 300,000 rows costs seconds)
    if cells["path"] != os.path.basename(cells["path"]) or not os.path.isfile(audio):  # noqa: PTH113, PTH119
        raise DataError(f"{cells['path']} is not a file in {clips}.")
    return Clip.from_json(
        {
            "id": name,
            "audio": audio,
            "source_lang": languages[0],
            "target_lang": languages[1],
            "source_text": cells["sentence"].strip() or None,
            "target_text": cells["translation"].strip(),
            "group": sys.intern(cells["client_id"]) or None,  # 128 characters, shared by all clips of a speaker
        }
    )
