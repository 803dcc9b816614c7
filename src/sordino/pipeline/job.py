"""What a stage is, and what it gets to work with.

A stage file defines one `Stage`: where its artefact lies, which part of the recipe it depends on, what it is made
from, and a `run` function that opens the parents, calls the library and writes files into `job.out`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sordino.config import records
from sordino.config.schema import SYSTEM_PROMPT, PromptSection, Recipe, fill_instruction
from sordino.data import manifest
from sordino.data.clip import Clip
from sordino.errors import ArtifactError, DataError, RecipeError
from sordino.models import devices, loading, registry
from sordino.models.family import Prompt
from sordino.models.speech import SpeechModel
from sordino.pipeline import artifact
from sordino.runtime import files

# key of a model in recipes and tables -> (directory in the run, what people call it)
MODELS = {
    "base": ("", "base"),
    "teacher": ("20-teacher", "teacher"),
    "pruned": ("40-pruned", "pruned"),
    "student": ("60-student", "healed"),
    "adapter": ("61-adapter", "QLoRA adapter"),
    "merged": ("62-merged", "merged"),
    "trimmed": ("63-trimmed", "trimmed"),
}
DATA, RANKING, PSEUDO, EXPORT = "10-data", "30-ranking", "50-pseudo", "70-export"
# told apart by name and size: hashing 100,000 clips at every look would take minutes
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".parquet"}
TRIALS = "trials.jsonl"  # of the ranking: one line a trial
CARD = "sordino.json"  # beside every model of a run: how it wants to be asked
OUTPUTS, SCORES, REPORT, SWEEP, CACHE = "80-outputs", "85-scores", "90-report", "95-sweep", "cache"


@dataclass(frozen=True)
class Stage:
    """name: the command; directory: in the run; section: settings it depends on, None where the recipe lacks it."""

    name: str
    directory: str
    section: Callable[[Recipe], Any]
    parents: Callable[[Recipe], Sequence[str]]  # directories in the run, or "" for the base model
    run: Callable[[Job], None]
    uses: tuple[str, ...] = ()  # top-level settings of the recipe that change the result
    resumable: tuple[
        str, ...
    ] = ()  # settings that may change between a kill and going on: progress does not depend on them


@dataclass
class Job:
    """One run of one stage. out: the directory to write into; record: facts that go into stage.json."""

    recipe: Recipe
    out: Path
    record: dict[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the command line, e.g. skip_bad

    @property
    def run_dir(self) -> Path:
        return self.recipe.directory

    @property
    def state(self) -> Path:
        """For resume points; dropped when the stage is done."""
        path = self.out / artifact.STATE_DIR
        path.mkdir(exist_ok=True)
        return path

    @property
    def cache(self) -> Path:
        return self.run_dir / CACHE

    def path_of(self, key: str) -> Path:
        return Path(self.path(key))

    def path(self, key: str) -> str:
        return model_path(self.recipe, key)

    def load(self, key: str, dtype: str | torch.dtype | None = None, **options: Any) -> SpeechModel:
        """Load a model of the chain by its key."""
        recipe = self.recipe
        return loading.load_checkpoint(
            self.path(key),
            device=device_of(recipe.device),
            dtype=dtype or recipe.dtype,
            attention=recipe.attention,
            revision=recipe.revision if key == "base" else None,
            **options,
        )

    def select_clips(self, what: str, count: int | None) -> list[Clip]:
        """The clips that choose layers and bits: the select split, never the test split. what: asks for them."""
        file = self.run_dir / DATA / "select.jsonl"
        if not file.is_file():
            raise DataError(f"{what}: this run has no select split.", "Set data.splits.select above 0.")
        return manifest.read(file)[:count]

    def describe(self, directory: Path) -> None:
        """Leave beside a model how it was asked while training, so that it is asked the same way when used."""
        recipe = self.recipe
        asked = plain(dataclasses.asdict(recipe.prompt))
        files.write_json(directory / CARD, {"prompt": asked, "source": recipe.source, "target": recipe.target})

    def prompt(self, speech: SpeechModel) -> str:
        """The rendered prompt; one string for training and translating, recorded in stage.json."""
        text = render(speech, self.recipe)
        self.record["prompt"] = text
        return text


def render(speech: SpeechModel, recipe: Recipe) -> str:
    """A recipe's prompt as the model sees it, with one audio placeholder."""
    return render_section(speech, recipe.prompt, recipe.source, recipe.target)


def render_section(speech: SpeechModel, section: PromptSection, source: str, target: str) -> str:
    """As `render`, for a prompt section and two languages."""
    filled = fill_instruction(section.instruction, source, target)
    example = (section.example[0], section.example[1]) if section.example else None
    system = section.system
    if system == "auto":
        system = SYSTEM_PROMPT if speech.family.chat.takes_system else None
    return speech.family.chat.render(speech.processor, Prompt(filled, system, section.style, example))


def device_of(wanted: str) -> torch.device:
    """The device to run on. Raises RecipeError for one that torch does not know or this machine does not have."""
    try:
        device = devices.default_device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RecipeError(f"device: '{wanted}' cannot be used here ({reason}).", "Use auto or cpu.") from error
    return device


def model_path(recipe: Recipe, key: str) -> str:
    """Where a model of the chain lies: a key of MODELS, or the name of an export format."""
    if key == "base":
        return recipe.model
    if key in MODELS:
        return str(recipe.directory / MODELS[key][0])
    return str(recipe.directory / EXPORT / key)


def systems(recipe: Recipe) -> dict[str, str]:
    """Key -> label of every model the recipe makes, in the order of the chain."""
    present = {
        "base": True,
        "teacher": recipe.finetune,
        "pruned": recipe.prune,
        "student": recipe.distil,
        "adapter": recipe.qlora,
        "merged": recipe.merge,
        "trimmed": recipe.trim,
    }
    found = {key: MODELS[key][1] for key, there in present.items() if there}
    if recipe.export:
        found |= {name: f"export {name}" for name in recipe.export.formats}
    return found


def chosen(recipe: Recipe) -> list[str]:
    """Keys of the systems to translate with. Raises RecipeError for one the recipe does not make."""
    made = systems(recipe)
    wanted = list(recipe.translate.systems) if recipe.translate and recipe.translate.systems else list(made)
    for key in wanted:
        if key not in made:
            raise RecipeError(f"translate.systems: this recipe makes no '{key}'; it makes {', '.join(made)}.")
    return wanted


def teacher_key(recipe: Recipe) -> str:
    """The model that is ranked and pruned."""
    if recipe.prune and recipe.prune.of != "auto":
        return recipe.prune.of
    return "teacher" if recipe.finetune else "base"


def qlora_start(recipe: Recipe) -> str:
    """The model the adapter is trained on."""
    assert recipe.qlora
    if recipe.qlora.start != "auto":
        return recipe.qlora.start
    return latest(recipe, ("student", "pruned", "teacher", "base"))


def trim_source(recipe: Recipe) -> str:
    """The model whose vocabulary is trimmed."""
    assert recipe.trim
    if recipe.trim.of != "auto":
        return recipe.trim.of
    return latest(recipe, ("merged", "student", "pruned", "teacher", "base"))


def export_source(recipe: Recipe) -> str:
    """The model that is exported."""
    assert recipe.export
    if recipe.export.of != "auto":
        return recipe.export.of
    return latest(recipe, ("trimmed", "merged", "student", "pruned", "teacher", "base"))


def on_base(recipe: Recipe, key: str) -> bool:
    """Whether opening this system loads the base model, whose revision the recipe may pin."""
    return key == "base" or (key == "adapter" and qlora_start(recipe) == "base")


def latest(recipe: Recipe, keys: Sequence[str]) -> str:
    """The first of `keys` that the recipe makes."""
    made = systems(recipe)
    return next(key for key in keys if key in made)


def directory_of(key: str) -> str:
    """A model key as a parent: its directory in the run; '' for the base model; exports share one directory."""
    return MODELS[key][0] if key in MODELS else EXPORT


def resolved(stage: Stage, recipe: Recipe) -> dict[str, Any] | None:
    """The settings a stage depends on, as stage.json records them; None where the recipe leaves the stage out."""
    section = stage.section(recipe)
    if section is None:
        return None
    found = dataclasses.asdict(section) if dataclasses.is_dataclass(section) else dict(section)  # type: ignore[arg-type]
    for name in stage.uses:
        value = getattr(recipe, name)
        found[name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    settings: dict[str, Any] = plain(found)
    return settings


def plain(value: Any) -> Any:
    """As JSON would give it back: tuples are lists."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def parents_of(stage: Stage, recipe: Recipe) -> list[artifact.Parent]:
    """The stage's parents with their hashes. Raises ArtifactError for one that is not finished."""
    found = []
    for directory in stage.parents(recipe):
        if directory == "":
            found.append(base_parent(recipe))
        elif directory == "corpus":
            found += corpus_parents(recipe)
        else:
            done = records.read_stage(recipe.directory / directory)
            if done is None:
                raise ArtifactError(
                    f"{recipe.directory / directory} is not finished, and {stage.name} needs it.",
                    "`sordino run RECIPE` runs what is missing.",
                )
            found.append(artifact.Parent(directory, done["hash"]))
    return found


def base_parent(recipe: Recipe) -> artifact.Parent:
    """The base model and the hash of its files; of a Hub model, its name and revision."""
    if registry.is_hub_id(recipe.model):
        return artifact.Parent(recipe.model, f"hub:{recipe.revision or 'main'}")
    registry.family_of(recipe.model)
    return artifact.Parent(recipe.model, artifact.fingerprint(Path(recipe.model)))


def corpus_parents(recipe: Recipe) -> list[artifact.Parent]:
    """The corpora: their tables by content, their audio by name and size. A plan may be made before they are there."""
    assert recipe.data
    sections = [recipe.data] + ([recipe.data.extra] if recipe.data.extra else [])
    found = []
    for section in sections:
        root = Path(section.path)
        runs = Path(recipe.out).resolve()  # a corpus directory may hold the runs: they are no part of it
        paths = sorted(p for p in root.rglob("*") if p.is_file() and runs not in p.resolve().parents)
        prints = {
            p.relative_to(root).as_posix(): str(p.stat().st_size)
            if p.suffix.lower() in AUDIO_SUFFIXES
            else files.fingerprint_file(p)
            for p in paths
        }
        found.append(artifact.Parent(section.path, files.combined(prints)))
    return found
