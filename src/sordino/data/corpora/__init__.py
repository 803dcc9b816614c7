"""The corpora sordino can read, one module each; adding one is a module and a line in CORPORA."""

import difflib
from importlib import import_module
from pathlib import Path
from typing import cast

from sordino.data.corpora.base import SPLITS, BadRow, Corpus, Loader, Split
from sordino.errors import RecipeError

__all__ = ["CORPORA", "SPLITS", "BadRow", "Corpus", "Loader", "Split", "load", "loader"]

CORPORA = {
    "folder": "sordino.data.corpora.folder:load",
}


def loader(name: str) -> Loader:
    """The reader of a corpus by name; RecipeError, with the near match, for a name that is not there."""
    if name not in CORPORA:
        near = difflib.get_close_matches(name, CORPORA, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise RecipeError(f"There is no corpus {name!r}.", f"{hint}There are: {', '.join(sorted(CORPORA))}.")
    module, function = CORPORA[name].split(":")
    return cast(Loader, getattr(import_module(module), function))


def load(name: str, path: str | Path, source_lang: str, target_lang: str, texts: str | None = None) -> Corpus:
    """Read a corpus by name; raises as `loader` and that corpus's reader do."""
    return loader(name)(path, source_lang, target_lang, texts)
