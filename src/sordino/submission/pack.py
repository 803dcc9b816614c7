"""A submission to the IWSLT model-compression track: a text file a test set, a line a segment, and the description.

    OUT/${TEAM}_IWSLT27_ModelCompression_${LP}_${constrained|unconstrained}_${primary|contrastive}/
      NAME.md                description.py
      TESTSET/NAME.txt       what is uploaded for the test set
      TESTSET/segments.jsonl the chunks behind it, as long_audio.py writes them
      stage.json             what made them

A test set is a folder of recordings with FILE_ORDER and, where it is segmented, one YAML list. As in the organisers'
own script (github.com/hlt-mt/iwslt-modelcompression, 2027), segments come in the order of FILE_ORDER, each is one line,
and without a list each recording is. Unlike it, nothing is passed over: a recording that FILE_ORDER does not name, or
the other way round, is refused. Rules: iwslt.org/2027/compression, and for the data iwslt.org/2026/compression.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from sordino.config import records
from sordino.data import chunks
from sordino.data.clip import MAX_SECONDS, Clip
from sordino.data.corpora import iwslt, order
from sordino.data.corpora import segments as listing
from sordino.data.corpora.base import AUDIO_SUFFIXES, visible
from sordino.errors import ArtifactError, DataError, RecipeError
from sordino.inference import long_audio
from sordino.inference.model import languages_of
from sordino.languages import language_code
from sordino.pipeline import artifact, leftovers, lineage
from sordino.publishing.choice import chosen_model
from sordino.runtime import files
from sordino.runtime.terminal import printable
from sordino.submission.description import Described, describe

PAIRS = ("en-de", "en-ar", "en-zh")  # that the track names
TEAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
SET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What the constrained condition allows, by the name of its reader: iwslt.org/2026/compression, "Data Conditions", only
# ACL 60/60 (aclanthology.org/attachments/2023.iwslt-1.2.dataset.zip). The page of 2027 has no such section yet.
CONSTRAINED = ("acl6060",)


@dataclass(frozen=True)
class Entry:
    """team, condition and kind of a submission. datasets: the submitter's own words on the training data."""

    team: str
    constrained: bool = False
    contrastive: bool = False
    datasets: str | None = None

    def name(self, pair: str) -> str:
        """Raises RecipeError for a team or a language pair that the track's naming has no place for."""
        if not TEAM.fullmatch(self.team):
            raise RecipeError(f"--team: {self.team!r} must be letters, digits, dots and hyphens.", "E.g. --team KIT")
        if pair not in PAIRS:
            raise RecipeError(f"the track takes {', '.join(PAIRS)}, not {pair}.", "Set --from and --to.")
        condition = "constrained" if self.constrained else "unconstrained"
        return f"{self.team}_IWSLT27_ModelCompression_{pair}_{condition}_" + (
            "contrastive" if self.contrastive else "primary"
        )


def submit(
    model: str,
    folders: Sequence[Path],
    entry: Entry,
    out: Path,
    options: long_audio.Options,
    segments: Path | None = None,
) -> dict[str, Any]:
    """Write a submission below `out`, and resume it there: {submission, directory, files, segments, empty, folded}.

    Raises DataError, ArtifactError, RecipeError, FamilyError; everything that can be known before translating is.
    """
    path = chosen_model(Path(model))
    source, target = languages_of(str(path), options.source, options.target)
    options = replace(options, source=source, target=target)
    name = entry.name(f"{language_code(source)}-{language_code(target)}")
    history = _lineage(path, entry)
    sets = _test_sets(folders, segments, (source, target))
    chunks.refuse_long([clip for clips in sets.values() for clip in clips], MAX_SECONDS)
    inputs = {clip.audio for clips in sets.values() for clip in clips}
    inputs |= {
        str(file) for folder in folders for file in (folder / order.NAME, *_lists(folder, segments)) if file.is_file()
    }
    section, parents = long_audio.request(str(path), options, sorted(inputs))
    section |= {"name": name, "datasets": entry.datasets, "sets": {key: len(clips) for key, clips in sets.items()}}
    directory = out / name
    long_audio.refuse_other(directory, section, parents)
    if artifact.why_stale(directory, section, parents) is not None:
        translator = long_audio.LongAudioTranslator(str(path), options)
        with artifact.building(directory, section, parents, {"stage": "submit"}) as (partial, record):
            outcomes = {}
            for key, clips in sets.items():
                state = partial / leftovers.STATE_DIR / key
                state.mkdir(parents=True, exist_ok=True)
                outcomes[key] = _write(partial / key, name, clips, translator.rows(clips, state), target)
            described = Described(name, path, f"{source} to {target}", history, entry.datasets, outcomes)
            files.write_text(partial / f"{name}.md", describe(described))
            record |= {"outcomes": outcomes}
    stage = records.read_stage(directory)
    assert stage is not None
    outcomes = stage["outcomes"]
    return {
        "submission": name,
        "directory": str(directory),
        "description": str(directory / f"{name}.md"),
        "files": {key: str(directory / key / f"{name}.txt") for key in outcomes},
        "segments": {key: outcome["segments"] for key, outcome in outcomes.items()},
        "empty": {key: outcome["empty"] for key, outcome in outcomes.items()},
        "folded": {key: outcome["folded"] for key, outcome in outcomes.items()},
    }


def _lineage(model: Path, entry: Entry) -> lineage.Lineage | None:
    """None where the submitter's words stand for it. Raises ArtifactError where the condition is not met."""
    try:
        history = lineage.read(model)
    except ArtifactError as error:
        if entry.constrained or not entry.datasets:
            remedy = f"{error.remedy} " if error.remedy else ""
            more = "" if entry.constrained else " Or say what data was used: --datasets TEXT (the rules ask for it)."
            raise ArtifactError(error.problem, f"{remedy}Submit a model inside its run.{more}") from None
        return None
    others = sorted({data.name for data in history.data} - set(CONSTRAINED))
    if entry.constrained and others:
        raise ArtifactError(
            f"{model} was made with {', '.join(others)}, and the constrained condition allows only "
            f"{', '.join(CONSTRAINED)}.",
            "Submit it without --constrained.",
        )
    return history


def _test_sets(folders: Sequence[Path], segments: Path | None, languages: tuple[str, str]) -> dict[str, list[Clip]]:
    if segments and len(folders) > 1:
        raise RecipeError(
            "--segments names the list of one test set, and several are given.", "Submit them one by one."
        )
    sets: dict[str, list[Clip]] = {}
    for folder in folders:
        key = folder.absolute().name
        if not SET.fullmatch(key):
            raise DataError(
                f"{folder}: a test set is named by its folder: letters, digits, dots, hyphens, underscores."
            )
        if key in sets:
            raise DataError(f"two test sets are called {key}.", "Name their folders apart.")
        sets[key] = test_set(folder, segments, languages)
    return sets


def test_set(folder: Path, segments: Path | None, languages: tuple[str, str]) -> list[Clip]:
    """The segments of a test set in the order of its lines. Raises DataError for what is missing or left over."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}.", f"A test set is a folder of recordings with {order.NAME}.")
    lists = _lists(folder, segments)
    if len(lists) > 1:
        raise DataError(f"{folder} holds {', '.join(f.name for f in lists)}.", "Name the list in --segments.")
    if lists:
        _refuse_outside(lists[0])
        clips = chunks.listed(lists[0], [folder / place for place in iwslt.AUDIO], languages)
    else:
        files = [file for file in visible(folder, "**/*") if file.suffix.lower() in AUDIO_SUFFIXES]
        if not files:
            raise DataError(f"{folder} holds no recordings.", f"Looked for: {', '.join(sorted(AUDIO_SUFFIXES))}.")
        clips = chunks.recordings(files, languages)
    recordings = {clip.audio: Path(clip.audio).name for clip in clips}
    if not (folder / order.NAME).is_file():
        if len(recordings) == 1:
            return clips
        raise DataError(f"{folder} has no {order.NAME}, and {len(recordings)} recordings.", "One name a line.")
    twice = [name for name, times in Counter(recordings.values()).items() if times > 1]
    if twice:
        problem = f"{folder} has several recordings called {twice[0]}, and {order.NAME} names no folders."
        raise DataError(problem, "Give every recording a name of its own.")
    ranks = order.ranks(folder / order.NAME, recordings.values())
    return sorted(clips, key=lambda clip: ranks[recordings[clip.audio]])


def _lists(folder: Path, segments: Path | None) -> list[Path]:
    if segments is not None:
        return [segments]
    return [file for file in visible(folder) if file.suffix in (".yaml", ".yml")]


def _refuse_outside(file: Path) -> None:
    """Raise DataError for a list that leads out of the test set's folder."""
    for entry in listing.entries(file):
        wav = PurePath(entry.get("wav", "") if isinstance(entry, dict) else "")
        if wav.is_absolute() or ".." in wav.parts:
            raise DataError(f"{file} names {printable(str(wav))}, which is not in the test set's folder.")


def _write(
    folder: Path, name: str, clips: Sequence[Clip], rows: Sequence[dict[str, Any]], target: str
) -> dict[str, Any]:
    """The set's files, read back and compared with the segments -> what the description says of them."""
    folder.mkdir(exist_ok=True)
    long_audio.write_rows(folder / long_audio.ROWS, rows)
    file = folder / f"{name}.txt"
    lines = long_audio.joined(rows, clips, target)
    files.write_text(file, "".join(line + "\n" for line in lines))
    back = file.read_text(encoding="utf-8").splitlines()  # at everything that any reader may take for a line's end
    _compare(file, back, clips)
    return {
        "segments": len(clips),
        "recordings": len({clip.audio for clip in clips}),
        "seconds": round(sum(clip.seconds or 0.0 for clip in clips), 2),
        "pieces": len(rows),
        "empty": [clip.id for clip, line in zip(clips, back, strict=True) if not line],
        "folded": [row["id"] for row in rows if len(row["text"].splitlines()) > 1],
    }


def _compare(file: Path, lines: Sequence[str], clips: Sequence[Clip]) -> None:
    if len(lines) != len(clips):
        raise DataError(f"{file} has {len(lines)} lines for {len(clips)} segments.", "Please report this.")
