"""Which models a server was asked for: their names, languages and bytes, before any of them is loaded."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.config import card as cards
from sordino.config import chain, records
from sordino.config.run_layout import EXPORT
from sordino.errors import ArtifactError, RecipeError
from sordino.languages import NAMES, language_code
from sordino.measure import size
from sordino.models import adapter_base, llama_cpp, registry
from sordino.models.loading import ADAPTER_CONFIG
from sordino.runtime.progress import note
from sordino.serve.settings import Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LABELS = {link.directory: link.key for link in chain.CHAIN if link.directory}  # in the order of the chain


@dataclass(frozen=True)
class Entry:
    """A model to serve. trained: it says itself which languages it translates; bytes: of its weights files.

    source, target: languages where a request names none; None where nothing says them. bytes is None where the files
    are not here (a Hub model).
    """

    id: str
    path: str
    source: str
    target: str | None
    trained: bool
    bytes: int | None
    created: int  # seconds since 1970

    def to_json(self) -> dict[str, Any]:
        """As OpenAI describes a model, and what the page shows beside."""
        standard = {"id": self.id, "object": "model", "created": self.created, "owned_by": "sordino"}
        default = {"source": language_code(self.source), "target": language_code(self.target) if self.target else None}
        return standard | {"bytes": self.bytes, "sources": self.sources, "targets": self.targets} | default

    @property
    def sources(self) -> list[str]:
        """Codes of the languages that may be asked for; all that have one for a model that does not say."""
        return [language_code(self.source)] if self.trained else list(NAMES)

    @property
    def targets(self) -> list[str]:
        return [language_code(self.target or "")] if self.trained else list(NAMES)


def entries(arguments: Sequence[str], settings: Settings) -> list[Entry]:
    """The models that the arguments name: MODEL, NAME=MODEL, or a run's directory, which stands for two.

    Raises RecipeError for two of one name or languages that a model was not trained for, and what is raised for
    directories that are no models.
    """
    found: list[Entry] = []
    for argument in arguments:
        name, path = _named(argument)
        if is_run(Path(path)):
            if name:
                raise RecipeError(f"serve: {path} is a run, which has several models; {name}= names one.")
            found += [_entry(None, str(model), settings) for model in of_run(Path(path))]
        else:
            found.append(_entry(name, path, settings))
    ids = [entry.id for entry in found]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise RecipeError(f"serve: two models are called {twice[0]}.", "Name them: NAME=MODEL.")
    return found


def _named(argument: str) -> tuple[str | None, str]:
    name, separator, path = argument.partition("=")
    if separator and NAME.fullmatch(name) and not Path(argument).exists():
        return name, path
    return None, argument


def is_run(path: Path) -> bool:
    """Whether a directory is a run's, by what stages leave in it."""
    return any((path / name).is_dir() for name in (*LABELS, EXPORT)) and not (path / "config.json").is_file()


def of_run(run: Path) -> list[Path]:
    """The teacher and the smallest export; where there is none, the last model of the chain. Finished stages only.

    Raises ArtifactError for a run without a finished model.
    """
    finished = [run / name for name in LABELS if records.read_stage(run / name) is not None]
    teacher = [path for path in finished if LABELS[path.name] == "teacher"]
    exports = [path.parent for path in sorted((run / EXPORT).glob("*/config.json"))]
    if exports and records.read_stage(run / EXPORT) is not None:
        return [*teacher, _smallest(exports)]
    if not finished:
        raise ArtifactError(f"{run} holds no finished model.", "`sordino run RECIPE` makes them.")
    return list(dict.fromkeys([*teacher, finished[-1]]))


def _smallest(exports: Sequence[Path]) -> Path:
    ordered = sorted(exports, key=lambda path: size.measure(path).weights_bytes)
    usable = [path for path in ordered if llama_cpp.available() or not registry.is_gguf(str(path))]
    for path in ordered[: ordered.index(usable[0])] if usable else []:
        note(f"{path} is left out: llama-cpp-python is not installed. {llama_cpp.EXTRA}.")
    return (usable or ordered)[0]


def _entry(name: str | None, path: str, settings: Settings) -> Entry:
    if not registry.is_hub_id(path) and not _is_adapter(Path(path)):
        registry.family_of(path)  # raises for what is no model
    card = cards.read(Path(path))
    target = settings.target or card.target
    if card.target is not None:
        for option, asked, key in (("--to", settings.target, "target"), ("--from", settings.source, "source")):
            if asked and language_code(asked) != language_code(str(getattr(card, key) or "en")):
                raise RecipeError(
                    f"serve: {path} was trained to translate from {card.source or 'en'} into {card.target}, "
                    f"not {option} {asked}.",
                    f"Leave {option} out: a run's models know their languages.",
                )
    return Entry(
        id=name or _name_of(path),
        path=path,
        source=str(settings.source or card.source or "en"),
        target=str(target) if target else None,
        trained=card.target is not None,
        bytes=weights_bytes(path),
        created=int(Path(path).stat().st_mtime if Path(path).exists() else time.time()),
    )


def _name_of(path: str) -> str:
    """RUN/teacher or RUN/FORMAT for a model of a run, a Hub model's own name, else the directory's."""
    if registry.is_hub_id(path):
        return path
    directory = Path(path).resolve()
    if directory.parent.name == EXPORT:
        return f"{directory.parent.parent.name}/{directory.name}"
    if directory.name in LABELS:
        return f"{directory.parent.name}/{LABELS[directory.name]}"
    return directory.name


def weights_bytes(path: str) -> int | None:
    """Bytes of the weights that loading a model reads; an adapter's with its base's."""
    directory = Path(path)
    if not directory.is_dir():
        return None
    measured = size.measure(directory)
    if not _is_adapter(directory):
        return measured.weights_bytes
    base = Path(adapter_base.base_of(directory))
    return size.together(measured, size.measure(base)).weights_bytes if base.is_dir() else None


def _is_adapter(directory: Path) -> bool:
    """Whether it holds nothing else; a model may have one beside its own weights."""
    return (directory / ADAPTER_CONFIG).is_file() and not (directory / registry.CONFIG).is_file()
