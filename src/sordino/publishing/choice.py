"""Which model of a run is meant."""

from __future__ import annotations

from pathlib import Path

from sordino.config.run_layout import EXPORT
from sordino.errors import ArtifactError, RecipeError
from sordino.models.loading import ADAPTER_CONFIG


def chosen_model(path: Path) -> Path:
    """A model directory as given, or the only export of a run. Raises ArtifactError for an adapter, RecipeError."""
    if (path / ADAPTER_CONFIG).is_file():
        raise ArtifactError(
            f"{path} is an adapter, which is no model without its base.", "Merge and export it, and take the export."
        )
    if (path / "config.json").is_file():
        return path
    exports = sorted(file.parent for file in (path / EXPORT).glob("*/config.json"))
    if len(exports) == 1:
        return exports[0]
    models = exports or sorted(file.parent for file in path.glob("*/config.json"))
    remedy = f"Give one of: {', '.join(map(str, models))}." if models else "Give a model directory or a run."
    raise RecipeError(f"it is not known which model of {path} is meant.", remedy)
