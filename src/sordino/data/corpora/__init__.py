"""The corpora sordino can read, one module each; adding one is a module and a line in CORPORA."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from sordino.data.corpora.base import SPLITS, BadRow, Corpus, Loader, Split
from sordino.errors import DataError, RecipeError, near_match

__all__ = ["CORPORA", "SPLITS", "BadRow", "Corpus", "Loader", "Split", "check", "load", "loader"]

CORPORA = {
    "acl6060": "sordino.data.corpora.acl6060:load",
    "covost2": "sordino.data.corpora.covost2:load",
    "folder": "sordino.data.corpora.folder:load",
    "iwslt": "sordino.data.corpora.iwslt:load",
    "mustc": "sordino.data.corpora.mustc:load",
}
UNSET = (None, (), "own")  # values of a recipe's settings that ask for nothing


def loader(name: str) -> Loader:
    """The reader of a corpus by name; RecipeError, with the near match, for a name that is not there."""
    if name not in CORPORA:
        near = near_match(name, CORPORA)
        hint = f"Did you mean {near!r}? " if near else ""
        raise RecipeError(f"There is no corpus {name!r}.", f"{hint}There are: {', '.join(sorted(CORPORA))}.")
    module, function = CORPORA[name].split(":")
    return cast(Loader, getattr(import_module(module), function))


def check(name: str, path: str | Path, source_lang: str, target_lang: str, texts: str | None = None) -> None:
    """Raise what `load` would for the corpus as a whole, as far as a look at the directory and the columns can tell."""
    read = loader(name)
    if not Path(path).is_dir():
        raise DataError(f"{path} is not a directory.", f"Name the directory of the corpus '{name}' in data.path.")
    look = getattr(import_module(read.__module__), "check", None)
    if look is not None:
        look(path, source_lang, target_lang, texts)


def load(
    name: str,
    path: str | Path,
    source_lang: str,
    target_lang: str,
    texts: str | None = None,
    *,
    audio_dir: Path | None = None,
    **settings: Any,
) -> Corpus:
    """Read a corpus by name; raises as `loader` and that corpus's reader do.

    audio_dir: where a corpus that keeps its audio inside tables may unpack it. settings: those of CorpusSection that
    only some corpora have; RecipeError for one that this corpus lacks, unless it is unset.
    """
    read = loader(name)
    accepted = list(inspect.signature(read).parameters)
    given = {key: value for key, value in settings.items() if value not in UNSET}
    for key in given:
        if key not in accepted:
            having = [each for each in sorted(CORPORA) if key in inspect.signature(loader(each)).parameters]
            raise RecipeError(
                f"The corpus {name!r} has no setting {key!r}.",
                f"Corpora that have it: {', '.join(having)}." if having else "",
            )
    if "audio_dir" in accepted:
        given["audio_dir"] = audio_dir
    return read(path, source_lang, target_lang, texts, **given)
