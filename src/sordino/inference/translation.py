"""Using a finished model: translate audio files, score text files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sordino.config.run_layout import CARD
from sordino.config.schema import PromptSection, Recipe
from sordino.data.audio import load
from sordino.data.clip import Clip
from sordino.data.corpora.segments import entries as segments_of
from sordino.errors import ArtifactError, DataError, RecipeError
from sordino.metrics import registry as metrics
from sordino.metrics import resegment
from sordino.models import prompts
from sordino.models.features import Features
from sordino.models.generation import Decoding, translate
from sordino.models.loading import open_model
from sordino.pipeline.device import device_of
from sordino.runtime import files
from sordino.runtime.progress import bar


def translate_files(
    model: str,
    files: Sequence[str],
    *,
    target: str | None = None,
    source: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    max_new_tokens: int = 256,
) -> list[dict[str, Any]]:
    """Translate audio files with any model of a chain, by default from and into the languages it was trained for.

    Rows {id, audio, text, seconds, tokens} in the order of `files`.

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
    source, target = languages_of(model, source, target)
    speech = open_model(model, device=device_of(device), dtype=dtype)
    prompt = prompts.render(speech, stored_prompt(model), source, target)
    clips = [Clip(str(i), str(Path(f).absolute()), None, source, target) for i, f in enumerate(files)]
    features = Features(speech, None)
    rows: list[dict[str, Any]] = []
    encoded, hearing = [], []
    with bar("translating", len(files)) as advance:
        for clip, wave in zip(clips, waves, strict=True):
            start = time.perf_counter()
            encoded.append(features.encode_waveform(clip, wave, prompt))
            hearing.append(time.perf_counter() - start)
        found = translate(speech, encoded, Decoding(batch_size, max_new_tokens), advance)
    for file, h, spent in zip(files, found, hearing, strict=True):
        seconds = round(h.seconds + spent, 4)
        rows.append({"id": Path(file).stem, "audio": file, "text": h.text, "seconds": seconds, "tokens": h.tokens})
    return rows


def languages_of(model: str, source: str | None, target: str | None) -> tuple[str, str]:
    """Source and target as given, else as the model was trained. Raises RecipeError where no target is known."""
    card = stored_card(model)
    target = target or card.get("target")
    if target is None:
        raise RecipeError("translate: no target language.", "Say which, e.g. --to German.")
    return str(source or card.get("source", "en")), str(target)


def stored_card(model: str) -> dict[str, Any]:
    """What a model of a run says of itself: prompt, source, target; nothing for any other model."""
    file = Path(model) / CARD
    card = files.read_json(file) if file.is_file() else {}
    if not isinstance(card, dict):
        raise ArtifactError(f"{file} does not say how the model is asked.", "Make it again.")
    return card


def stored_prompt(model: str) -> PromptSection:
    """How a model of a run was asked while training; the default prompt for any other model."""
    card = stored_card(model)
    if not card:
        return PromptSection()
    try:
        stored = card["prompt"]
        return PromptSection(**{**stored, "example": tuple(stored["example"])})
    except (KeyError, TypeError) as error:
        file = Path(model) / CARD
        raise ArtifactError(f"{file} does not say how the model is asked ({error}).", "Make it again.") from error


def score_files(
    hypotheses: Path,
    references: Path,
    target: str,
    names: Sequence[str],
    sources: Path | None = None,
    comet_environment: Path | None = None,
    segments: Path | None = None,
) -> dict[str, Any]:
    """Score a text file against another, a line a segment: {scores: [...]}, and {checks: [...]} where asked.

    segments: the references' list of segments; the translations, which may be cut in any way, are brought onto them.
    comet_environment: compare COMET with the original in this environment, which is made where it is missing.
    Raises DataError where the files do not match.
    """
    files = {"translations": hypotheses, "references": references} | ({"sources": sources} if sources else {})
    lines = {what: _lines(file) for what, file in files.items() if what != "translations" or segments is None}
    if segments is not None:
        lines["translations"] = _resegmented(hypotheses, lines["references"], segments, target)
    if len({len(found) for found in lines.values()}) > 1:
        counts = ", ".join(f"{file} has {len(lines[what])} lines" for what, file in files.items())
        raise DataError(f"{counts}.", "Give one line a segment, in the same order.")
    texts, wanted, spoken = lines["translations"], lines["references"], lines.get("sources")
    chosen = [metrics.get(name) for name in names]
    scores = [metric.score(texts, wanted, target, sources=spoken) for metric in chosen]
    result: dict[str, Any] = {"scores": [score.to_json() for score in scores]}
    if segments is not None:
        by = f"{resegment.PROGRAM}-{resegment.version()}"
        result["scores"] = [s | {"signature": f"{s['signature']}|resegmented:{by}"} for s in result["scores"]]
    if comet_environment is not None:
        from sordino.metrics import comet, comet_check

        system = hypotheses.name
        result["checks"] = [
            found.to_json()
            for metric, score in zip(chosen, scores, strict=True)
            if isinstance(metric, comet.Comet)
            for found in comet_check.check(
                metric, {system: score.segments or ()}, {system: texts}, wanted, spoken or [], comet_environment
            )
        ]
        if not result["checks"]:
            raise RecipeError("--comet-check: no COMET was asked for.", "Add --metrics comet.")
    return result


def _resegmented(hypotheses: Path, references: Sequence[str], listing: Path, target: str) -> list[str]:
    """One text a reference. A talk at a time where the translations are rows that name their audio, else as one."""
    named = [Path(str(entry.get("wav"))).stem if isinstance(entry, dict) else "" for entry in segments_of(listing)]
    if len(named) != len(references):
        raise DataError(
            f"{listing} lists {len(named)} segments, and there are {len(references)} references.",
            "Give the list that the references were made for.",
        )
    if hypotheses.suffix != ".jsonl":
        return resegment.resegment([(_lines(hypotheses), references)], target)
    said: dict[str, list[str]] = {name: [] for name in named}
    for number, line in enumerate(_lines(hypotheses), start=1):
        try:
            row = json.loads(line)
            said[Path(row["audio"]).stem].append(row["text"])
        except KeyError as error:
            raise DataError(f"{hypotheses}:{number}: {error} is no talk of {listing}, or a key that lacks.") from None
        except (ValueError, TypeError):
            raise DataError(f"{hypotheses}:{number} is no row of a translated talk.") from None
    silent = [name for name, texts in said.items() if not texts]
    if silent:
        raise DataError(f"{hypotheses} holds no translation of {', '.join(silent)}, which {listing} lists.")
    places = {name: [i for i, other in enumerate(named) if other == name] for name in said}
    talks = [(said[name], [references[i] for i in places[name]]) for name in said]
    found = dict(zip((i for name in said for i in places[name]), resegment.resegment(talks, target), strict=True))
    return [found[i] for i in range(len(references))]


def check_comet(recipe: Recipe, environment: Path | None) -> list[dict[str, Any]]:
    """Compare the COMET scores of an evaluated run with the original's; default environment: in the run's cache."""
    from sordino.config.run_layout import RunLayout
    from sordino.data import manifest
    from sordino.metrics import comet, comet_check
    from sordino.pipeline import evaluation

    assert recipe.translate
    layout = RunLayout(recipe.directory)
    stored = files.read_json(layout.scores)["systems"]
    clips = manifest.read(layout.manifest(recipe.translate.split))
    texts = {key: evaluation.hypotheses(recipe, key, clips) for key in stored}
    checks: list[dict[str, Any]] = []
    for name in map(metrics.canonical, recipe.evaluate.metrics if recipe.evaluate else ()):
        metric = metrics.get(name)
        if isinstance(metric, comet.Comet):
            found = {key: entry["scores"][name]["segments"] for key, entry in stored.items()}
            references, sources = [clip.target_text or "" for clip in clips], [clip.source_text for clip in clips]
            place = environment or layout.cache / "comet-original"
            checks += [c.to_json() for c in comet_check.check(metric, found, texts, references, sources, place)]
    if not checks:
        raise RecipeError("--comet-check: the recipe asks for no COMET.", "Add it: evaluate.metrics=[chrf,comet].")
    return checks


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise DataError(f"there is no file {file}.")
    try:
        text = file.read_text(encoding="utf-8")
        return text.removesuffix("\n").split("\n") if text else []
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error}.", "Save it as UTF-8.") from error
