"""What a stage is, and what it gets to work with.

A stage file defines one `Stage`: where its artefact lies, which part of the recipe it depends on, what it is made
from, and a `run` function that opens the parents, calls the library and writes files into `job.out`. All stage files
are imported to plan a run, so that what needs torch is imported by `run`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sordino.config import chain
from sordino.config.card import Card
from sordino.config.chain import ModelRef
from sordino.config.run_layout import RunLayout
from sordino.config.schema import Recipe
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.pipeline import leftovers
from sordino.pipeline.model_source import ModelSource
from sordino.runtime import files

if TYPE_CHECKING:
    import torch
    from _typeshed import DataclassInstance

    from sordino.models.speech import SpeechModel
    from sordino.pipeline.artifact import Parent

    Section = TypeVar("Section", bound=DataclassInstance)
else:
    Section = TypeVar("Section")

Grown = tuple[dict[str, Any], list["Parent"], bool]
BASE_MODEL, CORPUS = "", "corpus"  # parents that lie outside the run
# of a stage that trains: a resume point goes on with others of these, the steps are the same
RESUMABLE_TRAINING = ("accumulate", "gradient_checkpointing", "checkpoint_steps")


def _nothing(_: Recipe) -> Mapping[str, Any]:
    return {}


def _alone(_: Recipe, settings: Mapping[str, Any], parents: Sequence[Parent]) -> Grown:
    return dict(settings), list(parents), False


@dataclass(frozen=True)
class Stage(Generic[Section]):
    """One step of the pipeline.

    name: of the command; directory: in the run; section: of the recipe, None where the recipe leaves the stage out.
    parents: directories in the run that it is made from, or BASE_MODEL, or CORPUS.
    run: writes the artefact; gets the job and the stage's own section.
    uses: top-level settings of the recipe that change the result; extras: what else its result depends on, as further
    settings; resumable: settings that may change between a kill and going on, since progress does not depend on them.
    grown: settings and parents with what the finished artefact holds beside and keeps, and whether it keeps all it
    has. derived: made from what is kept anyway, in little time: it may be replaced without a question.
    beside: may run while others that say so do, since none of them is made from another.
    """

    name: str
    directory: str
    section: Callable[[Recipe], Section | None]
    parents: Callable[[Recipe], Sequence[str]]
    run: Callable[[Job, Section], None]
    uses: tuple[str, ...] = ()
    extras: Callable[[Recipe], Mapping[str, Any]] = _nothing
    resumable: tuple[str, ...] = ()
    grown: Callable[[Recipe, Mapping[str, Any], Sequence[Parent]], Grown] = _alone
    derived: bool = False
    beside: bool = False

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """All that the result depends on beside the parents, as stage.json records it; None without the section."""
        section = self.section(recipe)
        if section is None:
            return None
        values = dataclasses.asdict(section) | dict(self.extras(recipe))
        for name in self.uses:
            value = getattr(recipe, name)
            values[name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        settings: dict[str, Any] = files.plain(values)
        return settings


@dataclass
class Job:
    """One run of one stage. out: the directory to write into; record: facts that go into stage.json."""

    recipe: Recipe
    out: Path
    record: dict[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the command line, e.g. skip_bad

    @property
    def layout(self) -> RunLayout:
        """The files of the whole run."""
        return RunLayout(self.recipe.directory)

    @property
    def state(self) -> Path:
        """For resume points; dropped when the stage is done."""
        path = self.out / leftovers.STATE_DIR
        path.mkdir(exist_ok=True)
        return path

    def model(self, key: str) -> ModelRef:
        """Where a model of the chain lies."""
        return chain.reference(self.recipe, key)

    def load(
        self, key: str, dtype: str | torch.dtype | None = None, own_masks: bool = False, **options: Any
    ) -> SpeechModel:
        """Load a model of the chain by its key. own_masks: as of ModelSource."""
        return self.source(key, dtype, own_masks).open(**options)

    def source(self, key: str, dtype: str | torch.dtype | None = None, own_masks: bool = False) -> ModelSource:
        """How a model of the chain is opened."""
        recipe, model = self.recipe, self.model(key)
        return ModelSource(
            model.path,
            model.revision,
            recipe.device,
            dtype or recipe.dtype,
            recipe.attention,
            own_masks,
            recipe.encode_batch,
        )

    def clips(self, split: str) -> list[Clip]:
        """The clips of a split."""
        return manifest.read(self.layout.manifest(split))

    def select_clips(self, asks: str, count: int | None) -> list[Clip]:
        """The clips that choose layers and bits: the select split, never the test split.

        asks: the setting that needs them, for the message. Raises DataError without a select split.
        """
        if not self.layout.manifest("select").is_file():
            raise DataError(f"{asks}: this run has no select split.", "Set data.splits.select above 0.")
        return self.clips("select")[:count]

    def describe(self, directory: Path) -> None:
        """Leave beside a model how it was asked while training, so that it is asked the same way when used."""
        from sordino.models import prompts, registry

        recipe = self.recipe
        whole = (directory / registry.CONFIG).is_file()  # and no adapter
        family = registry.family_of(str(directory)) if whole else registry.family_of(recipe.model, recipe.revision)
        prompts.describe(directory, family, Card(recipe.prompt, recipe.source, recipe.target))

    def prompt(self, speech: SpeechModel) -> str:
        """The rendered prompt; one string for training and translating, recorded in stage.json."""
        from sordino.models import prompts

        text = prompts.render(speech, self.recipe.prompt, self.recipe.source, self.recipe.target)
        self.record["prompt"] = text
        return text
