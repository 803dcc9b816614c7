"""What a card is written from: a model's files, the records of its run, and what its publisher says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sordino.config import card
from sordino.config.run_layout import AUDIT
from sordino.languages import language_name
from sordino.measure.audit import Audit, audit
from sordino.models import prompts
from sordino.pipeline.lineage import Data, Lineage
from sordino.publishing import licences, techniques
from sordino.publishing.evaluation import Evaluation
from sordino.publishing.snippets import Asked
from sordino.runtime import files
from sordino.vocabulary.tokenizer import without_weights

HERE = "."  # a model in the code of a card that lies beside it
SIXTEEN_BIT = "bf16"
SOURCE = "en"  # where nothing says what is spoken


@dataclass(frozen=True)
class Statement:
    """What the publisher says. base_model: its Hub id, where the run has a directory; licence: of the model, as the Hub
    calls it; data_licence: in words."""

    base_model: str | None = None
    licence: str | None = None
    data_licence: str | None = None


@dataclass(frozen=True)
class Facts:
    """asked: how the model is loaded and asked. history: None where it is of no run. evaluation: the scores, or why
    there are none. source, target: languages, None where nothing says which. base_licence: as its card names it.
    """

    title: str
    size: Audit
    asked: Asked
    history: Lineage | None
    evaluation: Evaluation | str
    statement: Statement
    source: str | None
    target: str | None
    base_licence: str | None

    @property
    def scored(self) -> Evaluation | None:
        return self.evaluation if isinstance(self.evaluation, Evaluation) else None

    @property
    def corpora(self) -> Sequence[Data]:
        return self.history.data if self.history else ()

    @property
    def pair(self) -> tuple[str, str] | None:
        """Names of the languages."""
        return (language_name(self.source or SOURCE), language_name(self.target)) if self.target else None

    @property
    def base_on_the_hub(self) -> str | None:
        """Hub id of the base model, where it is known."""
        bases = self.history.bases if self.history else ()
        ids = (path for path, digest in bases if digest.startswith(techniques.HUB))
        return self.statement.base_model or next(ids, None)

    @property
    def base(self) -> str | None:
        """What the base model is called."""
        bases = self.history.bases if self.history else ()
        return self.base_on_the_hub or next((techniques.base_name(*base) for base in bases), None)

    def data_licence(self, corpus: str) -> str:
        """In words. corpus: the name of its reader."""
        return licences.CORPORA.get(corpus) or self.statement.data_licence or "not stated"


def read(
    directory: Path,
    title: str,
    where: str,
    history: Lineage | None,
    evaluation: Evaluation | str,
    statement: Statement | None = None,
    form: str | None = None,
) -> Facts:
    """where: what code calls the model, HERE or its Hub id. form: an export format, where no audit says it.

    Raises FamilyError, ArtifactError for a model directory that is none, or damaged.
    """
    speech, asked = without_weights(str(directory)), card.read(directory)
    family, processor = speech.family, speech.processor
    prompt = prompts.resolved(speech.family, asked.prompt, asked.source or SOURCE, asked.target or "")
    rate = family.audio.sampling_rate
    audited = directory / AUDIT
    if audited.is_file():
        form = str(files.read_json(audited, {"format": str})["format"])
    rendered, window = family.chat.render(processor, prompt), family.audio.window(processor) / rate
    licence = licences.of_base(*history.bases[0]) if history and len(history.bases) == 1 else None
    return Facts(
        title=title,
        size=audit(directory),
        asked=Asked(family, form or SIXTEEN_BIT, where, where != HERE, prompt, rendered, window, rate),
        history=history,
        evaluation=evaluation,
        statement=statement or Statement(),
        source=asked.source,
        target=asked.target,
        base_licence=licence,
    )
