"""The models of a run: one table, which everything else reads. No torch.

base ─ teacher ─ pruned ─ student ─ adapter ─ merged ─ trimmed ─ qat ─ exports, each of them optional but the base.
"""

from __future__ import annotations

from dataclasses import dataclass

from sordino.config import run_layout
from sordino.config.schema import Recipe

AUTO = "auto"  # the first of a model's starts that the recipe makes


@dataclass(frozen=True)
class ChainModel:
    """One model of the chain.

    key: its name in recipes and tables; directory: in the run, '' for the base model; label: what people call it;
    section: of the recipe, the stage that makes it, '' for the base model; starts: the models that it may be made
    from, the one that `auto` prefers first; setting: of the section, which chooses one of them, '' where nothing is to
    be chosen.
    """

    key: str
    directory: str
    label: str
    section: str = ""
    starts: tuple[str, ...] = ()
    setting: str = ""


CHAIN = (
    ChainModel("base", "", "base"),
    ChainModel("teacher", run_layout.TEACHER, "teacher", "finetune", ("base",)),
    ChainModel("pruned", run_layout.PRUNED, "pruned", "prune", ("teacher", "base"), "of"),
    ChainModel("student", run_layout.STUDENT, "healed", "distil", ("pruned",)),
    ChainModel(
        "adapter", run_layout.ADAPTER, "QLoRA adapter", "qlora", ("student", "pruned", "teacher", "base"), "start"
    ),
    ChainModel("merged", run_layout.MERGED, "merged", "merge", ("adapter",)),
    ChainModel(
        "trimmed", run_layout.TRIMMED, "trimmed", "trim", ("merged", "student", "pruned", "teacher", "base"), "of"
    ),
    # the last one, and quantized: it may be exported as it is, and made into nothing else
    ChainModel(
        "qat", run_layout.QAT, "QAT", "qat", ("trimmed", "merged", "student", "pruned", "teacher", "base"), "of"
    ),
)
# every format is a model of its own, in a directory of its own below this one; its key is the format's name
EXPORTS = ChainModel(
    "export",
    run_layout.EXPORT,
    "export",
    "export",
    ("qat", "trimmed", "merged", "student", "pruned", "teacher", "base"),
    "of",
)
BASE, TEACHER, PRUNED, STUDENT, ADAPTER, MERGED, TRIMMED, QAT = (model.key for model in CHAIN)
_BY_KEY = {model.key: model for model in CHAIN}


@dataclass(frozen=True)
class ModelRef:
    """A model of a run as it is opened. path: directory or Hub id; revision: of a Hub model that the path, or the
    adapter there, loads."""

    key: str
    path: str
    revision: str | None = None


def entry(key: str) -> ChainModel:
    """The row of the table behind a key; of any export format's, EXPORTS."""
    return _BY_KEY.get(key, EXPORTS)


def makes(recipe: Recipe, model: ChainModel) -> bool:
    """Whether a recipe makes this model (a base model is there without being made)."""
    return not model.section or bool(getattr(recipe, model.section))


def labels(recipe: Recipe) -> dict[str, str]:
    """Key -> label of every model that the recipe makes, exports included, in the order of the chain."""
    made = {model.key: model.label for model in CHAIN if makes(recipe, model)}
    formats = recipe.export.formats if recipe.export else ()
    return made | {name: f"{EXPORTS.label} {name}" for name in formats}


def scored(recipe: Recipe) -> list[str]:
    """Keys of the systems that translate and are scored."""
    return list((recipe.translate.systems if recipe.translate else ()) or labels(recipe))


def start_of(recipe: Recipe, key: str) -> str:
    """Key of the model that another one is made from, `auto` resolved.

    Of EXPORTS.key: the last model of the chain. Answers for models that the recipe leaves out, too.
    """
    model = entry(key)
    section = getattr(recipe, model.section)
    choice: str = getattr(section, model.setting, AUTO) if model.setting else AUTO
    if choice != AUTO:
        return choice
    return next(start for start in model.starts if makes(recipe, entry(start)))


def exports_qat(recipe: Recipe) -> bool:
    """Whether what is exported was trained through the rounding of its format."""
    return recipe.export is not None and start_of(recipe, EXPORTS.key) == QAT


def last_unrounded(recipe: Recipe) -> str:
    """Key of the last model of the chain that can still be rounded; what is exported where there is no qat."""
    last = start_of(recipe, EXPORTS.key)
    return start_of(recipe, QAT) if last == QAT else last


def ranked_model(recipe: Recipe) -> str:
    """Key of the model that is ranked, pruned where the recipe prunes, and compared with by size."""
    return start_of(recipe, PRUNED)


def ancestry(recipe: Recipe, key: str) -> list[str]:
    """Keys from a model back to the base model, both included."""
    keys = [key]
    while entry(keys[-1]).starts:
        keys.append(start_of(recipe, keys[-1]))
    return keys


def directory_of(key: str) -> str:
    """A model as a parent of stages: its directory in the run, '' for the base model; exports share one directory."""
    return entry(key).directory


def reference(recipe: Recipe, key: str) -> ModelRef:
    """Where a model of the chain lies."""
    if key == BASE:
        return ModelRef(key, recipe.model, recipe.revision)
    model = entry(key)
    path = recipe.directory / model.directory
    on_base = key == ADAPTER and start_of(recipe, key) == BASE
    return ModelRef(key, str(path if model is not EXPORTS else path / key), recipe.revision if on_base else None)
