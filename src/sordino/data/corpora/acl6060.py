"""ACL 60/60: 884 segments of ten ACL 2022 talks, in English, with translations into ten languages.

Two forms are read, and give clips with the same ids and groups:

    the original release (ACL Anthology, attachment of 2023.iwslt-1.2)      the Hub's copy (ymoslem/acl-6060)
    2/acl_6060/{dev,eval}/                                                  data/dev-00000-of-00001.parquet
      text/xml/ACL.6060.dev.en-xx.{en,de,zh,...}.xml                        data/eval-00000-of-00001.parquet
      segmented_wavs/gold/sent_1.wav ...                                    columns: index, audio, text_en, text_de, ...

dev (468 segments) and eval (416) are pooled, as in the paper; `subsets` takes one of them. The group is the talk. The
Hub's copy does not say which talk a row is from, but keeps the release's order, so TALKS tells. `split: paper` puts
the very segments into test that the paper's code does; the same talks are then in train.

segmented_wavs/shas holds an automatic segmentation that no reference is aligned with: it is not read.
"""

import html
import os
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from sordino.data.clip import Clip
from sordino.data.corpora import parquet
from sordino.data.corpora.base import Corpus, Rows, Split, choose_subsets, visible, wrong_layout
from sordino.errors import DataError
from sordino.languages import language_code, language_name
from sordino.runtime import foreign

NAME = "ACL 60/60"
LAYOUT = """\
  2/acl_6060/{dev,eval}/text/xml/ACL.6060.{dev,eval}.en-xx.{en,de,zh,...}.xml
  2/acl_6060/{dev,eval}/segmented_wavs/gold/sent_1.wav ...
or the Hub's copy:
  data/{dev,eval}-00000-of-00001.parquet"""

# Segments of each talk, in the order of the release, of its sent_N.wav and of the Hub's rows.
TALKS: Mapping[str, Mapping[str, int]] = {
    "dev": {
        "2022.acl-long.268": 107,
        "2022.acl-long.367": 82,
        "2022.acl-long.590": 66,
        "2022.acl-long.110": 108,
        "2022.acl-long.117": 105,
    },
    "eval": {
        "2022.acl-long.410": 100,
        "2022.acl-long.468": 84,
        "2022.acl-long.567": 56,
        "2022.acl-long.597": 90,
        "2022.acl-long.111": 86,
    },
}
SIZES = {subset: sum(talks.values()) for subset, talks in TALKS.items()}  # dev 468, eval 416
PAPER_SEED, PAPER_TEST = 0, 100

# The release's XML is no XML: the abstracts in it hold bare ampersands, so its regular lines are read instead.
DOC = re.compile(r'<doc\s[^>]*?docid="([^"]+)"[^>]*>(.*?)</doc>', re.DOTALL)
SEG = re.compile(r'<seg\s+id="(\d+)"[^>]*>(.*?)</seg>', re.DOTALL)


def load(
    path: str | Path,
    source_lang: str,
    target_lang: str,
    texts: str | None = None,
    *,
    subsets: tuple[str, ...] = (),
    split: str = "own",
    audio_dir: Path | None = None,
) -> Corpus:
    """Read ACL 60/60, from whichever form lies in `path`.

    subsets: dev, eval, or both where empty. split: "own" (none: dev and eval are pooled) or "paper". audio_dir: where
    the Hub copy's audio is unpacked; without it clips have their texts, but cannot be encoded.
    Raises DataError for another layout (showing this one), a language that is not there, a source language that is not
    English. A missing recording and an empty translation are `problems` of the row.
    """
    folder = Path(path).absolute()
    if texts is not None:
        raise DataError(f"{NAME} has no tables to choose from, but 'texts' says {texts!r}.", "Leave it out.")
    if language_code(source_lang) != "en":
        raise DataError(f"{NAME} is spoken in English, not {language_name(source_lang)}.", "Set source: en.")
    languages = source_lang, target_lang
    root = next((root for root in (folder / "2/acl_6060", folder / "acl_6060", folder) if _released(root)), None)
    if root is not None:
        corpus = _release(root, languages, subsets)
    else:
        shards = _shards(folder)
        if not shards:
            raise wrong_layout(NAME, folder, LAYOUT)
        corpus = _hub(folder, shards, languages, subsets, audio_dir)
    if split == "paper":
        return Corpus(corpus.clips, {clip.id: _paper_split(clip.id) for clip in corpus.clips}, corpus.problems)
    return corpus


def segment_id(subset: str, number: int) -> str:
    """number: of sent_N.wav, from 1 -> 'dev/sent_1'."""
    return f"{subset}/sent_{number}"


def talk_of(subset: str, number: int) -> str:
    """The talk of a segment by its number in the subset, from 1."""
    for talk, segments in TALKS[subset].items():
        if 1 <= number <= segments:
            return talk
        number -= segments
    raise DataError(f"{subset} has {SIZES[subset]} segments.", "Is it the original data set?")


@lru_cache(maxsize=1)
def paper_test() -> frozenset[str]:
    """Ids of the 100 segments that `(dev + eval).train_test_split(test_size=100, seed=0)` of datasets takes."""
    pooled = [segment_id(subset, number) for subset, size in SIZES.items() for number in range(1, size + 1)]
    drawn = np.random.default_rng(PAPER_SEED).permutation(len(pooled))[:PAPER_TEST]
    return frozenset(pooled[place] for place in drawn)


def _paper_split(segment: str) -> Split:
    return "test" if segment in paper_test() else "train"


def _clip(identity: str, audio: str, languages: tuple[str, str], source: str, target: str, talk: str) -> Clip:
    """One segment; DataError for an empty translation."""
    if not target:
        raise DataError("the target text is empty.")
    return Clip.from_json(
        {
            "id": identity,
            "audio": audio,
            "source_lang": languages[0],
            "target_lang": languages[1],
            "source_text": source or None,
            "target_text": target,
            "group": talk,
        }
    )


def _released(root: Path) -> bool:
    return any((root / subset / "text").is_dir() for subset in TALKS)


def _release(root: Path, languages: tuple[str, str], subsets: tuple[str, ...]) -> Corpus:
    there = [subset for subset in TALKS if (root / subset / "text").is_dir()]
    rows = Rows()
    for subset in choose_subsets(NAME, root, there, subsets):
        gold = root / subset / "segmented_wavs" / "gold"
        if not gold.is_dir():
            raise wrong_layout(NAME, root / subset, LAYOUT, "segmented_wavs/gold is missing")
        sources = _segments(root, subset, languages[0])
        targets = {number: text for number, (_, text) in _segments(root, subset, languages[1]).items()}
        for number, (talk, source) in sources.items():
            identity = segment_id(subset, number)
            make = partial(_gold, identity, gold, number, languages, source, targets.get(number, ""), talk)
            rows.add(identity, f"{subset}: ", make)
    return rows.corpus()


def _gold(
    identity: str, gold: Path, number: int, languages: tuple[str, str], source: str, target: str, talk: str
) -> Clip:
    audio = gold / f"sent_{number}.wav"
    if not audio.is_file():
        raise DataError(f"{audio} is not a file.", "Is the release unpacked completely?")
    return _clip(identity, str(audio), languages, source, target, talk)


def _segments(root: Path, subset: str, language: str) -> dict[int, tuple[str, str]]:
    """Segment number -> (talk, text in one language), in the file's order."""
    folder = root / subset / "text" / "xml"
    prefix = f"ACL.6060.{subset}.en-xx."
    file = folder / f"{prefix}{language_code(language)}.xml"
    if not folder.is_dir():
        raise wrong_layout(NAME, root / subset, LAYOUT, "text/xml is missing")
    if not file.is_file():
        there = sorted(item.name.removeprefix(prefix).removesuffix(".xml") for item in folder.glob(f"{prefix}*.xml"))
        raise DataError(
            f"{folder} has no {file.name}, the texts in {language_name(language)}.",
            f"Languages found: {', '.join(there) or 'none'}.",
        )
    text = foreign.read_text(file)
    found_segments = {
        int(number): (html.unescape(talk), " ".join(html.unescape(words).split()))
        for talk, body in DOC.findall(text)
        for number, words in SEG.findall(body)
    }
    if not found_segments:
        raise DataError(f'{file} holds no <doc docid="..."> with <seg id="1"> lines.', "Fetch it again.")
    return found_segments


def _shards(folder: Path) -> dict[str, list[Path]]:
    """Subset -> its parquet files, in order: dev-00000-of-00001.parquet, or dev/0000.parquet."""
    files: dict[str, list[Path]] = {}
    for file in visible(folder, "**/*.parquet"):
        subset = re.split(r"[-.]", file.name)[0]
        subset = subset if subset in TALKS else file.parent.name
        if subset in TALKS:
            files.setdefault(subset, []).append(file)
    return {subset: files[subset] for subset in TALKS if subset in files}


def _hub(
    folder: Path,
    shards: Mapping[str, list[Path]],
    languages: tuple[str, str],
    subsets: tuple[str, ...],
    audio: Path | None,
) -> Corpus:
    columns = {f"text_{language_code(language)}" for language in languages} | ({"audio"} if audio else set())
    rows = Rows()
    for subset in choose_subsets(NAME, folder, list(shards), subsets):
        complete = sum(_check(file, columns) for file in shards[subset]) == SIZES[subset]
        place = 0
        for file in shards[subset]:
            needed = [*columns, "index"] if "index" in parquet.reader(file).schema_arrow.names else [*columns]
            for line, row in enumerate(parquet.rows(file, needed), start=1):
                place += 1
                # Where rows are missing only their index tells what they are; it counts from 0.
                number = place if complete else int(row["index"]) + 1 if row.get("index") is not None else None
                name = f"{file.name} row {line}"
                rows.add(name, f"{name}: ", partial(_embedded, subset, number, row, languages, audio, file))
    return rows.corpus()


def _check(file: Path, columns: set[str]) -> int:
    """The number of a shard's rows; DataError for a column that is not there."""
    with parquet.reader(file) as shard:
        there = shard.schema_arrow.names
        count = int(shard.metadata.num_rows)
    lacking = sorted(columns - set(there))
    if lacking:
        raise DataError(f"{file} lacks the column {' and '.join(map(repr, lacking))}.", f"Found: {', '.join(there)}.")
    return count


def _embedded(
    subset: str,
    number: int | None,
    row: Mapping[str, Any],
    languages: tuple[str, str],
    folder: Path | None,
    shard: Path,
) -> Clip:
    if number is None:
        raise DataError(f"{subset} is not complete and has no column 'index'.", "Fetch the whole data set.")
    identity, talk = segment_id(subset, number), talk_of(subset, number)
    source, target = (" ".join((row[f"text_{language_code(one)}"] or "").split()) for one in languages)
    name = identity.replace("/", "-")
    audio = shard if folder is None else parquet.unpack(row["audio"], folder.absolute(), name)
    return _clip(identity, os.fspath(audio), languages, source, target, talk)
