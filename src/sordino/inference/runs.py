"""The models of a run, found by its directories alone: which there are, how they scored, and which one to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config.chain import BASE, CHAIN
from sordino.config.records import STAGE_FILE
from sordino.config.run_layout import AUDIT, EXPORT, RunLayout
from sordino.errors import UsageError
from sordino.report.frontier import smallest_good
from sordino.runtime import files

METRIC = "chrf"  # always among the scores that a sweep compares by, and by default
CONFIGS = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class RunModel:
    """A finished model of a run. label: as reports print it; score, interval: chrF where the run has scored it.

    export: whether it is a deployable form; bytes: of its weights, where the run has weighed it.
    """

    key: str
    label: str
    path: Path
    export: bool
    score: float | None = None
    interval: tuple[float, float] | None = None
    bytes: int | None = None

    def __str__(self) -> str:
        return f"{self.path}" + (f" (chrF {self.score:.1f})" if self.score is not None else "")


def is_run(path: Path) -> bool:
    """Whether a directory is no model, but holds finished stages."""
    return not any((path / name).is_file() for name in CONFIGS) and any(path.glob(f"[0-9][0-9]-*/{STAGE_FILE}"))


def models_of(run: Path) -> list[RunModel]:
    """In the order of the chain, exports last. Raises ArtifactError for scores that are damaged."""
    file = RunLayout(run).scores
    systems: dict[str, Any] = files.read_json(file, {"systems": dict})["systems"] if file.is_file() else {}
    scores = {key: row.get("scores", {}).get(METRIC, {}) for key, row in systems.items()}
    file = RunLayout(run).sizes
    sizes: dict[str, Any] = files.read_json(file, {}) if file.is_file() else {}
    models = [(model.key, model.label, run / model.directory, False) for model in CHAIN if model.key != BASE]
    exports = sorted(audit.parent for audit in (run / EXPORT).glob(f"*/{AUDIT}"))
    models += [(path.name, f"export {path.name}", path, True) for path in exports]
    return [
        _model(key, label, path, export, scores.get(key, {}), sizes.get(key) or {})
        for key, label, path, export in models
        if any((path / name).is_file() for name in CONFIGS)
    ]


def _model(
    key: str, label: str, path: Path, export: bool, score: Mapping[str, Any], size: Mapping[str, Any]
) -> RunModel:
    """score, size: as the run's records have them, empty where they lack the model."""
    interval = score.get("interval")
    bounds = (float(interval[0]), float(interval[1])) if interval else None
    return RunModel(key, label, path, export, score.get("value"), bounds, size.get("weights_bytes"))


def best(run: Path) -> RunModel | None:
    """The smallest export that is as good as the one that scored best (`frontier.smallest_good`), else the only one;
    where nothing is exported, the same of all models.

    None where there are several and no scores.
    """
    models = models_of(run)
    models = [model for model in models if model.export] or models
    scored = [model for model in models if model.score is not None]
    index = smallest_good([(model.bytes or 0, model.score or 0.0, model.interval) for model in scored])
    if index is not None:
        return scored[index]
    return models[0] if len(models) == 1 else None


def chosen(path: str) -> tuple[str, RunModel | None]:
    """A model's path as it is; of a run, its best model. Raises UsageError where it is not known which that is."""
    run = Path(path)
    if not is_run(run):
        return path, None
    model, models = best(run), models_of(run)
    if model is not None:
        return str(model.path), model
    if not models:
        raise UsageError(f"{path} is a run without a finished model.", "`sordino run RECIPE` goes on with it.")
    raise UsageError(
        f"{path} is a run of {len(models)} models, and none of them is scored.",
        f"Give one: {', '.join(str(model.path) for model in models)}.",
    )
