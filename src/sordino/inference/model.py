"""A loaded model that knows how it is asked, and in which languages: what its card beside the weights says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from sordino.config import card
from sordino.config.card import Card
from sordino.errors import UsageError
from sordino.languages import language_code, language_name
from sordino.models import prompts, vllm, vllm_environment
from sordino.models.features import Features
from sordino.models.generation import Decoding
from sordino.models.loading import open_model
from sordino.models.speech import SpeechModel
from sordino.pipeline.device import device_of
from sordino.pruning.layer import Layer

SOURCE = "en"  # where nothing says what is spoken


@dataclass(eq=False, repr=False)
class Model:
    """speech: the stock transformers model with its processor; card: prompt and languages.

    removed: layers that were pruned in memory, by their index in the files that the model was loaded from.
    versions: of each parameter when it was loaded, by its identity; training changes them.
    """

    speech: SpeechModel
    card: Card = field(default_factory=Card)
    removed: tuple[Layer, ...] = ()
    versions: dict[int, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = [language_name(name) if name else "?" for name in (self.card.source, self.card.target)]
        counts = ", ".join(f"{len(self.speech.layers(scope))} {scope} layers" for scope in ("decoder", "encoder"))
        dtype = str(self.speech.dtype).removeprefix("torch.")
        return f"<{self.speech.path}: {self.speech.family.model_type}, {counts}, {' to '.join(names)}, {dtype}>"

    @cached_property
    def features(self) -> Features:
        return Features(self.speech, None)

    def prompt(self, source: str, target: str) -> str:
        """The prompt as the model sees it, with one audio placeholder."""
        return prompts.render(self.speech, self.card.prompt, source, target)

    def changed(self) -> bool:
        """Whether any parameter was trained or replaced since the files were read."""
        return any(self.versions.get(id(p)) != p._version for p in self.speech.model.parameters())


def load(
    path: str,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    engine: str = "transformers",
    options: Decoding | None = None,
) -> Model:
    """Any model of a run, an export, an adapter or a Hub id, with its card.

    engine: "vllm" decodes in its own environment, as many clips at once and as long texts as `options` say.

    Raises FamilyError, ArtifactError, RecipeError as `open_model` and `device_of` do.
    """
    asked = card.read(Path(path))
    with _no_bars():
        if engine == "vllm":
            options = options or Decoding()
            vllm_environment.require()
            speech = vllm.load(
                path,
                device=device_of(device),
                dtype=dtype,
                sequences=options.batch_size,
                max_new_tokens=options.max_new_tokens,
            )
        else:
            speech = open_model(path, device=device_of(device), dtype=dtype)
    return Model(speech, asked, versions={id(p): p._version for p in speech.model.parameters()})


def handed_over(engine: str, options: Decoding) -> Decoding:
    """How many clips the engine is given together: vLLM fills a place as soon as it is free."""
    more = vllm.PART if engine == "vllm" else 1
    return dataclasses.replace(options, batch_size=options.batch_size * more)


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws a bar while it loads, whoever asks."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def languages(asked: Card, source: str | None, target: str | None) -> tuple[str, str]:
    """Source and target as given, else as the model was trained. Raises UsageError where no target is known."""
    target = target or asked.target
    if target is None:
        raise UsageError("no target language is known for this model.", "Say which: --to German (Python: to='German').")
    return source or asked.source or SOURCE, target


def languages_of(path: str, source: str | None, target: str | None) -> tuple[str, str]:
    """As `languages`, for a model that is not loaded."""
    return languages(card.read(Path(path)), source, target)


def untrained(path: str, source: str, target: str) -> str | None:
    """A word of warning where a model is asked for languages that it was not trained for; None where all is well, or
    nothing says what it was trained for."""
    asked = card.read(Path(path))
    pairs = (("translate into", target, asked.target), ("listen to", source, asked.source))
    others = [(what, now, known) for what, now, known in pairs if known and language_code(now) != language_code(known)]
    if not others:
        return None
    what, now, known = others[0]
    return (
        f"{path} was trained to {what} {language_name(known)}, not {language_name(now)}: what it answers may be neither"
    )


def with_languages(model: Model, source: str | None, target: str | None) -> Model:
    """The model with languages of its own in place of those it was saved with, where they are given."""
    source, target = source or model.card.source or SOURCE, target or model.card.target
    asked = dataclasses.replace(model.card, source=source, target=target)
    return dataclasses.replace(model, card=asked)
