"""Using a finished model: translate audio files, score text files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sordino import artifact
from sordino.data.audio import load
from sordino.data.clip import Clip
from sordino.decoding import Decoding, translate
from sordino.errors import ArtifactError, DataError
from sordino.features import Features
from sordino.metrics import registry as metrics
from sordino.progress import bar
from sordino.recipe import PromptSection
from sordino.stages.job import CARD, device_of, render_section
from sordino.stages.opening import open_model


def translate_files(
    model: str,
    files: Sequence[str],
    *,
    target: str,
    source: str = "en",
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    max_new_tokens: int = 256,
) -> list[dict[str, Any]]:
    """Translate audio files with any model of a chain. Rows {id, audio, text, seconds, tokens} in the order of `files`.

    seconds: processing time, audio encoder included. Every file is read before the model is loaded, and all that
    cannot be used are named at once. Raises DataError, FamilyError.
    """
    waves, problems = [], []
    for file in files:
        try:
            waves.append(load(file))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    speech = open_model(model, device=device_of(device), dtype=dtype)
    prompt = render_section(speech, stored_prompt(model), source, target)
    clips = [Clip(str(i), str(Path(f).absolute()), None, source, target) for i, f in enumerate(files)]
    features = Features(speech, None)
    rows: list[dict[str, Any]] = []
    heard, hearing = [], []
    with bar("translating", len(files)) as advance:
        for clip, wave in zip(clips, waves, strict=True):
            start = time.perf_counter()
            heard.append(features.hear_wave(clip, wave, prompt))
            hearing.append(time.perf_counter() - start)
        found = translate(speech, heard, Decoding(batch_size, max_new_tokens), advance)
    for file, h, spent in zip(files, found, hearing, strict=True):
        seconds = round(h.seconds + spent, 4)
        rows.append({"id": Path(file).stem, "audio": file, "text": h.text, "seconds": seconds, "tokens": h.tokens})
    return rows


def stored_prompt(model: str) -> PromptSection:
    """How a model of a run was asked while training; the default prompt for any other model."""
    file = Path(model) / CARD
    if not file.is_file():
        return PromptSection()
    try:
        stored = artifact.read_json(file)["prompt"]
        return PromptSection(**{**stored, "example": tuple(stored["example"])})
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{file} does not say how the model is asked ({error}).", "Make it again.") from error


def score_files(hypotheses: Path, references: Path, target: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Score a text file against another, a line a segment. Raises DataError where they do not match."""
    texts, wanted = _lines(hypotheses), _lines(references)
    if len(texts) != len(wanted):
        raise DataError(
            f"{hypotheses} has {len(texts)} lines, {references} has {len(wanted)}.", "Give one line a segment."
        )
    return [metrics.get(name.strip()).score(texts, wanted, target).to_json() for name in names]


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise DataError(f"there is no file {file}.")
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error}.", "Save it as UTF-8.") from error
