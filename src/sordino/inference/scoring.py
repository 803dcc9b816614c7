"""Text files scored against references, resegmented where they were cut elsewhere; COMET compared with the original."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sordino.config.schema import Recipe
from sordino.data.corpora.segments import entries as segments_of
from sordino.errors import DataError, RecipeError
from sordino.metrics import registry as metrics
from sordino.metrics import resegment
from sordino.metrics.base import Metric, Score
from sordino.runtime import files

METRICS = ("bleu", "chrf", "chrf++")


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
    paths = {"translations": hypotheses, "references": references} | ({"sources": sources} if sources else {})
    lines = {what: _lines(file) for what, file in paths.items() if what != "translations"}
    if segments is None:
        lines["translations"] = _texts(hypotheses)
    else:
        lines["translations"] = _resegmented(hypotheses, lines["references"], segments, target)
    if len(set(map(len, lines.values()))) > 1:
        counts = ", ".join(f"{file} has {len(lines[what])} lines" for what, file in paths.items())
        raise DataError(f"{counts}.", "Give one line a segment, in the same order.")
    texts, spoken = lines["translations"], lines.get("sources")
    chosen = [metrics.get(name) for name in names]
    scores = [metric.score(texts, lines["references"], target, sources=spoken) for metric in chosen]
    result: dict[str, Any] = {"scores": [score.to_json() for score in scores]}
    if segments is not None:
        by = f"{resegment.PROGRAM}-{resegment.version()}"
        result["scores"] = [s | {"signature": f"{s['signature']}|resegmented:{by}"} for s in result["scores"]]
    if comet_environment is not None:
        result["checks"] = _checks(
            chosen, scores, hypotheses.name, texts, lines["references"], spoken or [], comet_environment
        )
        if not result["checks"]:
            raise RecipeError("--comet-check: no COMET was asked for.", "Add --metrics comet.")
    return result


def score_texts(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target: str,
    names: Sequence[str] = METRICS,
    sources: Sequence[str | None] | None = None,
) -> dict[str, Score]:
    """Scores by metric. Raises DataError where the texts do not match, RecipeError for an unknown metric."""
    return {
        name: metrics.get(name).score(hypotheses, references, target, sources=sources)
        for name in map(metrics.canonical, names)
    }


def _checks(
    chosen: Sequence[Metric],
    scores: Sequence[Score],
    system: str,
    texts: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str],
    environment: Path,
) -> list[dict[str, Any]]:
    """Every COMET among the metrics, compared with the original."""
    from sordino.metrics import comet, comet_check

    return [
        check.to_json()
        for metric, score in zip(chosen, scores, strict=True)
        if isinstance(metric, comet.Comet)
        for check in comet_check.check(
            metric, {system: score.segments or ()}, {system: texts}, references, sources, environment
        )
    ]


def _resegmented(hypotheses: Path, references: Sequence[str], listing: Path, target: str) -> list[str]:
    """One text a reference. A talk at a time where the translations are rows that name their audio, else as one."""
    talks = [Path(str(entry.get("wav"))).stem if isinstance(entry, dict) else "" for entry in segments_of(listing)]
    if len(talks) != len(references):
        raise DataError(
            f"{listing} lists {len(talks)} segments, and there are {len(references)} references.",
            "Give the list that the references were made for.",
        )
    if hypotheses.suffix != ".jsonl":
        return resegment.resegment([(_lines(hypotheses), references)], target)
    texts: dict[str, list[str]] = {name: [] for name in talks}
    for number, row in enumerate(_rows(hypotheses), start=1):
        talk = Path(str(row.get("audio", ""))).stem
        if talk not in texts:
            raise DataError(f"{hypotheses}:{number}: '{talk}' is no talk of {listing}.")
        texts[talk].append(row["text"])
    silent = [name for name in texts if not texts[name]]
    if silent:
        raise DataError(f"{hypotheses} holds no translation of {', '.join(silent)}, which {listing} lists.")
    places = {name: [i for i, other in enumerate(talks) if other == name] for name in texts}
    pairs = [(texts[name], [references[i] for i in places[name]]) for name in texts]
    order = [i for name in texts for i in places[name]]
    aligned = dict(zip(order, resegment.resegment(pairs, target), strict=True))
    return [aligned[i] for i in range(len(references))]


def _texts(file: Path) -> list[str]:
    """One text a line; of segments.jsonl and the like, the text of each row."""
    return [row["text"] for row in _rows(file)] if file.suffix == ".jsonl" else _lines(file)


def _rows(file: Path) -> list[dict[str, Any]]:
    """Translations as `translate` writes them. Raises DataError for a line that is none."""
    rows = []
    for number, line in enumerate(_lines(file), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"{file}:{number} is no row of a translation.", "A row is a JSON object with a text.")
        rows.append(row)
    return rows


def check_comet(recipe: Recipe, environment: Path | None) -> list[dict[str, Any]]:
    """Compare the COMET scores of an evaluated run with the original's; default environment: in the run's cache."""
    from sordino.config.run_layout import RunLayout
    from sordino.data import manifest
    from sordino.metrics import comet, comet_check
    from sordino.pipeline import evaluation

    assert recipe.translate
    layout = RunLayout(recipe.directory)
    systems = files.read_json(layout.scores)["systems"]
    clips = manifest.read(layout.manifest(recipe.translate.split))
    texts = {key: evaluation.hypotheses(recipe, key, clips) for key in systems}
    checks: list[dict[str, Any]] = []
    for name in map(metrics.canonical, recipe.evaluate.metrics if recipe.evaluate else ()):
        metric = metrics.get(name)
        if isinstance(metric, comet.Comet):
            segments = {key: entry["scores"][name]["segments"] for key, entry in systems.items()}
            references, sources = [clip.target_text or "" for clip in clips], [clip.source_text for clip in clips]
            place = environment or layout.cache / "comet-original"
            checks += [c.to_json() for c in comet_check.check(metric, segments, texts, references, sources, place)]
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
