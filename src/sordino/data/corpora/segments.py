"""Long recordings, a YAML list of segments, and texts with one line a segment: the form of MuST-C and of IWSLT.

    - {duration: 3.5, offset: 16.08, speaker_id: spk.767, wav: ted_767.wav}

A segment becomes a Clip with start and seconds, so nothing is decoded here and no talk is ever decoded whole. A list of
250,000 segments is parsed in blocks: by libyaml where PyYAML has it, and never all in memory.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import yaml

from sordino.data.clip import Clip
from sordino.data.corpora.base import Rows, Split
from sordino.errors import DataError
from sordino.runtime import foreign
from sordino.runtime.terminal import printable, quoted

# Scalars as text: a talk called 2022.10 is no number. The C loader is ten times as fast.
YAML = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
BLOCK_LINES = 1000
NEEDED = "wav", "offset", "duration"
SHAPE = "It is a list of {wav, offset, duration}."


def read(
    rows: Rows,
    segments: Path,
    texts: tuple[Path | None, Path | None],
    audio: Sequence[Path],
    languages: tuple[str, str],
    prefix: str = "",
    split: Split | None = None,
) -> None:
    """Add the segments of one list to `rows`.

    texts: source and target, one line a segment, or None; without a target the clips are there to be translated.
    audio: directories to look for a `wav` in. Ids are prefix, the recording's name and the segment's number in it, from
    0; the group is the recording.
    Raises DataError for a file that is not UTF-8 or not YAML, a list that is none, and texts of another length.
    """
    numbers: dict[str, int] = {}
    places: dict[str, str | None] = {}
    folders = [place.absolute() for place in audio]
    files = [text for text in texts if text is not None]
    lengths = [sum(1 for _ in foreign.lines(text)) for text in files]
    lines = [itertools.repeat("") if text is None else map(str.strip, foreign.lines(text)) for text in texts]
    total = 0
    for total, entry in enumerate(entries(segments), start=1):
        if lengths and total > min(lengths):
            continue  # only count: the error below says by how much they differ
        source, target = (next(each) for each in lines)
        wav = entry.get("wav", "") if isinstance(entry, dict) else ""
        stem = PurePath(wav).with_suffix("").as_posix() if PurePath(wav).name else ""
        number = numbers[stem] = numbers.get(stem, -1) + 1
        if wav not in places:
            paths = (os.path.join(place, wav) for place in folders)  # noqa: PTH118
            places[wav] = next((path for path in paths if wav and os.path.isfile(path)), None)  # noqa: PTH113
        name = f"{prefix}{stem or 'segment'}_{number}"
        spoken = source, target if texts[1] else None
        make = partial(_clip, name, entry, places[wav], spoken, languages, stem, folders)
        rows.add(name, f"{segments.name} segment {total}: ", make, split)
    if not total:
        raise DataError(f"{segments} holds no segments.", SHAPE)
    if set(lengths) - {total}:
        counts = ", ".join(f"{text.name} has {length:,}" for text, length in zip(files, lengths, strict=True))
        raise DataError(
            f"{segments} lists {total:,} segments, and each text must have as many lines: {counts}.",
            "A line is the text of one segment, in the same order. Fetch what is not complete again.",
        )


def entries(file: Path) -> Iterator[Any]:
    """The items of a YAML list, parsed a block of lines at a time. Of a mapping, what has a plain value, as text.

    Raises DataError for a file that cannot be read, or is no list.
    """
    for first, block in _blocks(file):
        try:
            items = yaml.load(block, YAML)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = first + (mark.line if mark else 0)
            problem = getattr(error, "problem", None) or "unreadable"
            raise DataError(f"{file}:{line}: not YAML: {problem}.", "Was the file cut?") from None
        except RecursionError:
            raise DataError(f"{file}:{first}: nested too deeply for a list of segments.", SHAPE) from None
        if items in (None, ""):  # comments, or a document marker alone
            continue
        if not isinstance(items, list):
            raise DataError(f"{file}:{first}: not a list of segments.", SHAPE)
        for item in items:
            # what aliases make of nested values could be of any size
            yield {k: v for k, v in item.items() if isinstance(v, str)} if isinstance(item, dict) else item


def _blocks(file: Path) -> Iterator[tuple[int, str]]:
    """(number of the first line, text) of blocks that can be parsed alone: a new one starts at an item's dash."""
    lines: list[str] = []
    first = 1
    for number, line in enumerate(foreign.lines(file), start=1):
        if len(lines) >= BLOCK_LINES and line.startswith("- "):
            yield first, "\n".join(lines)
            first, lines = number, []
        lines.append(line)
    if lines:
        yield first, "\n".join(lines)


def _clip(
    name: str,
    entry: Any,
    audio: str | None,
    texts: tuple[str, str | None],
    languages: tuple[str, str],
    group: str,
    places: Sequence[Path],
) -> Clip:
    if not isinstance(entry, dict):
        raise DataError("not a mapping of wav, offset and duration.")
    lacking = [key for key in NEEDED if not entry.get(key)]
    if lacking:
        raise DataError(f"lacks {' and '.join(lacking)}.", f"It has {', '.join(map(str, entry)) or 'nothing'}.")
    if audio is None:
        raise DataError(f"{printable(entry['wav'])} is not a file in {' or '.join(map(str, places))}.")
    if texts[1] == "":
        raise DataError("the target text is empty.")
    return Clip.from_json(
        {
            "id": name,
            "audio": audio,
            "start": _seconds(entry, "offset"),
            "seconds": _seconds(entry, "duration"),
            "source_lang": languages[0],
            "target_lang": languages[1],
            "source_text": texts[0] or None,
            "target_text": texts[1],
            "group": group,
        }
    )


def _seconds(entry: dict[str, str], key: str) -> float:
    try:
        return float(entry[key])
    except (TypeError, ValueError):
        raise DataError(f"{key} must be a number of seconds, found {quoted(entry[key], 60)}.") from None
