"""Text files scored against references, resegmented where they were cut elsewhere; COMET compared with the original."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sordino.config.schema import Recipe
from sordino.data import texts
from sordino.data.corpora.segments import entries as segments_of
from sordino.errors import DataError, RecipeError
from sordino.metrics import registry as metrics
from sordino.metrics import resegment
from sordino.metrics.base import Metric, Score, form_note
from sordino.runtime import files
from sordino.runtime.progress import note
from sordino.runtime.terminal import quoted

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
    chosen = [metrics.get(name) for name in names]
    columns = [(references, texts.read(references, "references"))]
    texts.refuse_blank(*columns[0], "reference")
    if sources:
        columns.append((sources, texts.read(sources, "sources")))
        if any(metric.needs_sources for metric in chosen):
            texts.refuse_blank(*columns[1], "source text")
    written = texts.read(hypotheses)
    texts.refuse_lengths(columns if segments else [(hypotheses, written), *columns])
    expected, *spoken = ([one.text for one in column] for _, column in columns)
    if segments is None:
        answers = [one.text for one in written]
    else:
        answers = _resegmented(hypotheses, written, expected, segments, target)
    if form := form_note(answers, expected):
        note(form)
    given = spoken[0] if spoken else None
    scores = [metric.score(answers, expected, target, sources=given) for metric in chosen]
    result: dict[str, Any] = {"scores": [score.to_json() for score in scores]}
    if segments is not None:
        by = f"{resegment.PROGRAM}-{resegment.version()}"
        result["scores"] = [s | {"signature": f"{s['signature']}|resegmented:{by}"} for s in result["scores"]]
    if comet_environment is not None:
        result["checks"] = _checks(chosen, scores, hypotheses.name, answers, expected, given or [], comet_environment)
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


def _resegmented(
    hypotheses: Path, written: Sequence[texts.Text], references: Sequence[str], listing: Path, target: str
) -> list[str]:
    """One text a reference. A talk at a time where the translations are rows that name their audio, else as one."""
    talks = [Path(entry.get("wav", "")).stem if isinstance(entry, dict) else "" for entry in segments_of(listing)]
    if len(talks) != len(references):
        raise DataError(
            f"{listing} lists {len(talks)} segments, and there are {len(references)} references.",
            "Give the list that the references were made for.",
        )
    if hypotheses.suffix.lower() != texts.ROWS:
        return resegment.resegment([([one.text for one in written], references)], target)
    of_talk: dict[str, list[str]] = {name: [] for name in talks}
    for row in written:
        if row.audio is None:
            raise DataError(
                f"{hypotheses}:{row.line}: the row names no 'audio'.", "Give the rows of `translate --out`."
            )
        talk = Path(row.audio).stem
        if talk not in of_talk:
            raise DataError(f"{hypotheses}:{row.line}: {quoted(talk)} is no talk of {listing}.")
        of_talk[talk].append(row.text)
    silent = [name for name in of_talk if not of_talk[name]]
    if silent:
        raise DataError(f"{hypotheses} holds no translation of {', '.join(silent)}, which {listing} lists.")
    places = {name: [i for i, other in enumerate(talks) if other == name] for name in of_talk}
    pairs = [(of_talk[name], [references[i] for i in places[name]]) for name in of_talk]
    order = [i for name in of_talk for i in places[name]]
    aligned = dict(zip(order, resegment.resegment(pairs, target), strict=True))
    return [aligned[i] for i in range(len(references))]


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
