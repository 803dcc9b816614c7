"""Recipes: one experiment per YAML file, one section per stage.

A section that is present is a stage that runs. `load` reads the file, applies `key=value` overrides, refuses
unknown keys (with the near match), checks types and contradictions, and reports all mistakes at once. The result
is frozen and fully resolved: what is recorded in stage.json is what ran.

The field tables below are the reference: one place owns a setting's name, type, default and meaning.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from sordino import settings
from sordino.errors import RecipeError
from sordino.languages import language_code, language_name

ScopeName = Literal["decoder", "encoder", "both"]
# of exports
Format = Literal["bf16", "nf4", "w4a16", "w4a16-gptq", "mixed", "gguf-q8_0", "gguf-q4_k_m", "gguf-q4_0"]
SYSTEM_PROMPT = "You are a professional translator."  # the paper's
Precision = Literal["auto", "float32", "bfloat16", "bfloat16-mixed"]


@dataclass(frozen=True)
class PromptSection:
    """How the model is asked. `{source}` and `{target}` become English language names."""

    style: Literal["chat", "base"] = "chat"  # base: audio then instruction, for models without a chat template
    system: str | None = "auto"  # auto: SYSTEM_PROMPT, where the family takes one beside audio
    instruction: str = "Translate the {source} speech into {target}:"
    example: tuple[str, ...] = ()  # one-shot: a sentence and its translation, asked and answered as text before


@dataclass(frozen=True)
class SplitSection:
    """Sizes of the held-out splits: a number of clips, or a fraction below 1. What is left is for training."""

    select: float = 100  # chooses the layers
    dev: float = 100  # watched while training
    test: float = 100  # the final scores, nothing else
    by: Literal["group", "segment"] = "group"  # segment: random by clip, as the paper did; leaks talks and speakers


@dataclass(frozen=True)
class CorpusSection:
    """A corpus on disk and what to take of it; docs/corpora.md shows each one's layout."""

    corpus: str = "folder"  # acl6060, covost2, folder, iwslt or mustc
    path: str = ""
    texts: str | None = None  # the table (iwslt: the list of segments), where the folder holds several
    subsets: tuple[str, ...] = ()  # acl6060, covost2, mustc: parts as published, e.g. [dev]; default: all usual ones
    split: Literal["own", "paper"] = "own"  # paper (acl6060): test is the 100 segments the paper drew; leaks talks
    rows: int | None = None  # a seeded sample of so many clips, after the limits below
    min_seconds: float | None = None  # limits on clips: length by the table or the file's header
    max_seconds: float | None = None
    max_ratio: float | None = None  # a translation so many times longer or shorter than usual for its transcript


@dataclass(frozen=True)
class DataSection(CorpusSection):
    splits: SplitSection = SplitSection()
    extra: CorpusSection | None = None  # out-of-domain training clips, e.g. CoVoST2


@dataclass(frozen=True)
class TrainSection:
    epochs: float = 3
    batch_size: int = 4  # clips a step
    accumulate: int = 1  # a step's clips are run in so many parts
    lr: float = 1e-5
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Precision = "auto"  # auto: float32 on a CPU, bfloat16-mixed on an accelerator
    gradient_checkpointing: bool = False
    freeze: tuple[Literal["encoder", "projector", "embeddings"], ...] = ()
    max_steps: int | None = None  # cut the training short
    checkpoint_steps: int | None = None  # write a resume point every so many steps; default: once an epoch


@dataclass(frozen=True)
class FinetuneSection(TrainSection):
    weight_decay: float = 0.001


@dataclass(frozen=True)
class RankSection:
    method: Literal["iterative", "middle", "explicit"] = "iterative"
    scope: ScopeName = "decoder"
    # auto: chrF for zh and ja, else chrF++; the others are explained in compress/criteria.py
    criterion: Literal["auto", "chrf", "chrf++", "bleu", "loss", "kl", "influence", "angular"] = "auto"
    search: Literal["exact", "racing"] = "exact"  # racing drops candidates on part of the clips: faster, not exact
    targets: tuple[str, ...] = ()  # rank by the mean over several target languages; default: the recipe's
    remove: int = 8  # layers to remove, one a round
    layers: tuple[str, ...] = ()  # explicit: "12" or "decoder.12" or "encoder.3", in removal order
    protect_first: int = 1  # layers at the start that are never candidates
    protect_last: int = 1
    clips: int | None = None  # so many clips of the select split; default: all
    memory_mb: int | None = None  # for batches; default: a quarter of the model, 128 MiB at least
    max_new_tokens: int = 256


@dataclass(frozen=True)
class PruneSection:
    of: Literal["auto", "teacher", "base"] = "auto"  # auto: the teacher where there is one
    remove: int | None = None  # take so many of the ranking's removals; default: all of them


@dataclass(frozen=True)
class FilterSection:
    """Which of the teacher's translations are left out. `None` is no limit."""

    cut: bool = True  # without an end after max_new_tokens
    max_ratio: float | None = None  # so many times longer or shorter than the reference, in characters
    health: bool = False  # with any fault that metrics/health.py knows
    min_chrf: float | None = None  # sentence chrF against the reference, 0 to 100
    min_comet: float | None = None  # COMET of the segment, about 0 to 1; needs source texts
    comet: str = "comet"  # which COMET: comet:MODEL, as in evaluate.metrics


@dataclass(frozen=True)
class PseudolabelSection:
    method: Literal["greedy", "mbr"] = "greedy"  # mbr: of several samples the one that the others agree with most
    samples: int = 8  # mbr: drawn for each clip
    epsilon: float = 0.02  # mbr: tokens less probable than this are not drawn
    temperature: float = 0.5  # mbr: of few samples; at 1 the demo's are too bad for eight to vote down
    filter: FilterSection = FilterSection()
    batch_size: int = 16  # translations at once
    max_new_tokens: int = 256


@dataclass(frozen=True)
class MixSection:
    """What a student is trained on. Pairs (audio, text) that occur twice are kept once."""

    authentic: bool = True
    pseudo: bool = True
    oversample: int = 1  # repeat the in-domain pairs so many times
    extra: int = 0  # add so many out-of-domain clips (data.extra)


@dataclass(frozen=True)
class DistilSection(TrainSection):
    epochs: float = 4
    mix: MixSection = MixSection()
    heal: Literal["once", "each"] = "once"  # each: train after every single removal


@dataclass(frozen=True)
class QloraSection(TrainSection):
    epochs: float = 4
    start: Literal["auto", "base", "teacher", "pruned", "student"] = "auto"  # auto: the latest model of the chain
    quantise: Literal["nf4", "none"] = "nf4"
    rank: int = 64
    alpha: int = 128
    rslora: bool = True
    dropout: float = 0.0
    scope: Literal["all", "decoder"] = "all"  # all: every linear layer, audio encoder and projector included
    mix: MixSection = MixSection()


@dataclass(frozen=True)
class MergeSection:
    """The adapter goes into the 16-bit model it was trained on; quantisation comes after."""


@dataclass(frozen=True)
class TrimSection:
    tokens: int | None = None  # rows to keep, most frequent first; default: all that the texts need
    splits: tuple[Literal["train", "extra", "select", "dev"], ...] = ("train",)  # and the teacher's translations
    of: Literal["auto", "base", "teacher", "pruned", "student", "merged"] = "auto"  # auto: the latest model


@dataclass(frozen=True)
class SensitivitySection:
    """How format mixed finds out which parts need their bits."""

    measure: Literal["kl", "loss"] = "kl"  # compress/sensitivity.py
    clips: int = 32  # so many clips of the select split
    drop: bool = True  # layers that are ranked but not pruned may go too


@dataclass(frozen=True)
class ExportSection:
    formats: tuple[Format, ...] = ()  # default: nf4; with a budget, mixed
    of: Literal["auto", "base", "teacher", "pruned", "student", "merged", "trimmed"] = "auto"
    # limit of format mixed, on the bytes of its weights files: in 10^9 bytes, or as a share of the 16-bit teacher's
    budget_gb: float | None = None
    budget_ratio: float | None = None
    sensitivity: SensitivitySection = SensitivitySection()
    calibration: int = 128  # training clips that w4a16-gptq is rounded for


@dataclass(frozen=True)
class TranslateSection:
    split: Literal["dev", "test"] = "test"
    systems: tuple[str, ...] = ()  # default: every model of the chain
    batch_size: int = 16
    max_new_tokens: int = 256


@dataclass(frozen=True)
class EvaluateSection:
    metrics: tuple[str, ...] = ("bleu", "chrf", "chrf++")  # and comet or comet:MODEL, which need source texts
    bootstrap: int = 1000  # resamples behind each 95 % interval
    significance: bool = True  # test every system against the teacher, with ten times as many shuffles
    clean: bool = False  # score the outputs without preambles, line breaks and outer quotation marks as well


@dataclass(frozen=True)
class ReportSection:
    samples: int = 8  # clips shown side by side


@dataclass(frozen=True)
class SweepSection:
    """Smaller forms of the chain's models, made, scored and weighed, to be drawn as bytes against quality."""

    of: tuple[
        Literal["base", "teacher", "pruned", "student", "merged", "trimmed"], ...
    ] = ()  # default: teacher and last model
    formats: tuple[Format, ...] = ()  # default: all; what cannot be made or run here is left out and named
    budget_ratios: tuple[float, ...] = (0.35, 0.25, 0.22, 0.2, 0.17)  # of format mixed, as in export
    remove: tuple[int, ...] = ()  # the teacher without so many ranked layers, not healed; default: half of them


@dataclass(frozen=True)
class Recipe:
    name: str = "{source}-{target}"  # the run's directory under `out`; language codes are filled in
    out: str = "runs"
    model: str = ""  # a local directory or a Hub id
    revision: str | None = None  # of a Hub model
    source: str = "en"
    target: str = "de"
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # for everything but training
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    prompt: PromptSection = PromptSection()
    data: DataSection | None = None
    finetune: FinetuneSection | None = None
    rank: RankSection | None = None
    prune: PruneSection | None = None
    pseudolabel: PseudolabelSection | None = None
    distil: DistilSection | None = None
    qlora: QloraSection | None = None
    merge: MergeSection | None = None
    trim: TrimSection | None = None
    export: ExportSection | None = None
    translate: TranslateSection | None = field(default_factory=TranslateSection)
    evaluate: EvaluateSection | None = field(default_factory=EvaluateSection)
    report: ReportSection | None = field(default_factory=ReportSection)
    sweep: SweepSection | None = None

    @property
    def directory(self) -> Path:
        return Path(self.out) / self.name

    @property
    def criterion(self) -> str:
        """The ranking's criterion with `auto` resolved."""
        wanted = self.rank.criterion if self.rank else "auto"
        if wanted != "auto":
            return wanted
        targets = (self.rank.targets if self.rank else ()) or (self.target,)
        return "chrf" if any(language_code(target) in ("zh", "ja") for target in targets) else "chrf++"


def load(file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides (dotted keys, YAML values).

    Raises RecipeError that lists every mistake.
    """
    path = Path(file)
    if not path.is_file():
        raise RecipeError(f"there is no recipe {path}.", "recipes/ holds examples to copy.")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds no settings.", "A recipe is a YAML mapping; see recipes/demo.yaml.")
    problems: list[str] = []
    for override in overrides:
        settings.override(Recipe, raw, override, problems)
    recipe = parse(raw, problems, str(path))
    return recipe


def parse(raw: Mapping[str, Any], problems: list[str], origin: str) -> Recipe:
    """A mapping -> Recipe with names resolved. Raises RecipeError with all of `problems` and its own."""
    recipe = _default_formats(typing.cast(Recipe, settings.section(Recipe, raw, "", problems)))
    if not problems:
        _contradictions(recipe, problems)
        _budgets(recipe, problems)
    if problems:
        raise RecipeError(f"{origin}: " + "; ".join(problems) + ".")
    try:
        name = recipe.name.format(source=language_code(recipe.source), target=language_code(recipe.target))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise RecipeError(f"{origin}: name: '{recipe.name}' may use {{source}} and {{target}} only.") from error
    if "/" in name or name in ("", ".", ".."):
        raise RecipeError(f"{origin}: name: '{name}' must be a plain directory name.", "Use `out` for its parent.")
    return dataclasses.replace(recipe, name=name)


def _default_formats(recipe: Recipe) -> Recipe:
    section = recipe.export
    if not section or section.formats:
        return recipe
    formats: tuple[Format, ...] = ("mixed",) if section.budget_gb or section.budget_ratio else ("nf4",)
    return dataclasses.replace(recipe, export=dataclasses.replace(section, formats=formats))


def fill_instruction(template: str, source: str, target: str) -> str:
    """The instruction with English language names in place of {source} and {target}."""
    return template.replace("{source}", language_name(source)).replace("{target}", language_name(target))


def _contradictions(recipe: Recipe, problems: list[str]) -> None:
    """Settings that are each valid but cannot be together."""
    if not recipe.model:
        problems.append("model: missing (a directory or a Hub id)")
    if recipe.data is None or not recipe.data.path:
        problems.append("data.path: missing (where the corpus is)")
    if recipe.data is not None:
        _corpora(recipe.data, problems)
    if len(recipe.prompt.example) not in (0, 2):
        problems.append("prompt.example: give a sentence and its translation, or nothing")
    rank = recipe.rank
    if rank and rank.method == "explicit" and not rank.layers:
        problems.append("rank.layers: method 'explicit' needs the layers to remove")
    if rank and rank.method != "explicit" and rank.layers:
        problems.append(f"rank.layers: not used by method '{rank.method}'; use method: explicit")
    if rank and rank.criterion in ("influence", "angular") and rank.scope != "decoder":
        problems.append(f"rank.criterion: '{rank.criterion}' is of decoder layers; use scope: decoder")
    if rank and rank.search == "racing" and rank.criterion in ("loss", "kl", "influence", "angular"):
        problems.append(f"rank.search: '{rank.criterion}' is cheap enough for exact; racing is for translation scores")
    if rank and recipe.prune and recipe.prune.remove:
        ranked = len(rank.layers) if rank.method == "explicit" else rank.remove
        if recipe.prune.remove > ranked:
            problems.append(f"prune.remove: {recipe.prune.remove}, but rank finds {ranked} removals")
    if recipe.prune and not rank:
        problems.append("prune: needs the rank section (method: explicit takes a list by hand)")
    if recipe.prune and recipe.prune.of == "teacher" and not recipe.finetune:
        problems.append("prune.of: there is no teacher without the finetune section")
    if recipe.distil and not recipe.prune:
        problems.append("distil: needs the prune section, since it heals a pruned model")
    if recipe.pseudolabel and not recipe.finetune:
        problems.append("pseudolabel: needs the finetune section, which makes the teacher")
    if recipe.pseudolabel:
        _labels(recipe.pseudolabel, problems)
    if recipe.merge and not recipe.qlora:
        problems.append("merge: needs the qlora section, which makes the adapter")
    _mixes(recipe, problems)
    _starts(recipe, problems)
    _trim(recipe, problems)
    for name in ("finetune", "distil", "qlora"):
        section = getattr(recipe, name)
        if section and section.accumulate > 0 and section.batch_size % section.accumulate:
            problems.append(f"{name}.accumulate: must divide batch_size")
    if recipe.qlora and recipe.qlora.freeze:
        problems.append("qlora.freeze: an adapter's base is frozen whole; use qlora.scope: decoder")
    _ranges(recipe, "", problems)


# the least value that makes sense, wherever a setting of this name stands
AT_LEAST = {
    "batch_size": 1, "accumulate": 1, "max_steps": 1, "checkpoint_steps": 1, "max_new_tokens": 1, "rows": 1,
    "clips": 1, "remove": 1, "rank": 1, "alpha": 1, "oversample": 1, "protect_first": 0, "protect_last": 0, "extra": 0,
    "select": 0, "dev": 0, "test": 0, "warmup_ratio": 0, "weight_decay": 0, "dropout": 0, "bootstrap": 0, "samples": 0,
    "epsilon": 0, "min_chrf": 0, "calibration": 1, "tokens": 1,
}  # fmt: skip
ABOVE_ZERO = ("epochs", "lr", "max_grad_norm", "temperature", "budget_gb", "budget_ratio")
BELOW_ONE = ("warmup_ratio", "dropout", "epsilon", "budget_ratio")


def _ranges(section: Any, where: str, problems: list[str]) -> None:
    """Numbers that no stage could use, in every section."""
    for each in dataclasses.fields(section):
        value, spot, name = getattr(section, each.name), f"{where}{each.name}", each.name
        if dataclasses.is_dataclass(value):
            _ranges(value, f"{spot}.", problems)
        elif not isinstance(value, (int, float)):
            continue
        elif not math.isfinite(value):
            problems.append(f"{spot}: {value} is not a number to compute with")
        elif name in AT_LEAST and value < AT_LEAST[name]:
            problems.append(f"{spot}: must be at least {AT_LEAST[name]}, found {value:g}")
        elif name in ABOVE_ZERO and value <= 0:
            problems.append(f"{spot}: must be above 0, found {value:g}")
        elif name in BELOW_ONE and value >= 1:
            problems.append(f"{spot}: must be below 1, found {value:g}")


def _mixes(recipe: Recipe, problems: list[str]) -> None:
    """A student's training clips must come from somewhere."""
    for name in ("distil", "qlora"):
        section = getattr(recipe, name)
        if section is None:
            continue
        if section.mix.pseudo and not recipe.pseudolabel:
            problems.append(f"{name}.mix.pseudo: needs the pseudolabel section, or set it to false")
        if not section.mix.pseudo and not section.mix.authentic and not section.mix.extra:
            problems.append(f"{name}.mix: nothing is left to train on")
        if section.mix.extra and (recipe.data is None or recipe.data.extra is None):
            problems.append(f"{name}.mix.extra: needs data.extra, the out-of-domain corpus")


def _labels(section: PseudolabelSection, problems: list[str]) -> None:
    """Settings of pseudolabel that only one method uses, and limits that nothing could pass."""
    default = PseudolabelSection()
    for name in ("samples", "epsilon", "temperature") if section.method == "greedy" else ():
        if getattr(section, name) != getattr(default, name):
            problems.append(f"pseudolabel.{name}: not used by method 'greedy'; use method: mbr")
    if section.method == "mbr" and section.samples < 2:
        problems.append("pseudolabel.samples: mbr compares samples with each other; at least 2")
    limits = section.filter
    if limits.max_ratio is not None and limits.max_ratio < 1:
        problems.append("pseudolabel.filter.max_ratio: must be at least 1 (2: up to twice or half the reference)")
    if limits.min_chrf is not None and limits.min_chrf > 100:
        problems.append("pseudolabel.filter.min_chrf: chrF is 0 to 100")
    if limits.comet != FilterSection().comet and limits.min_comet is None:
        problems.append("pseudolabel.filter.comet: not used without min_comet")


def _corpora(data: DataSection, problems: list[str]) -> None:
    """What the corpora are asked for must be possible."""
    for where, section in (("data", data), ("data.extra", data.extra)):
        if section is None:
            continue
        if where == "data.extra" and not section.path:
            problems.append("data.extra.path: missing (where the out-of-domain corpus is)")
        if section.max_ratio is not None and section.max_ratio < 1:
            problems.append(f"{where}.max_ratio: must be at least 1 (2: up to twice or half the usual length)")
        if (section.min_seconds or 0) > (section.max_seconds or math.inf):
            problems.append(f"{where}.min_seconds: is above max_seconds")
        if section.rows is not None and section.rows < 1:
            problems.append(f"{where}.rows: must be at least 1")
    if data.split == "paper" and data.splits.by == "group":
        problems.append("data.split: 'paper' has the same talks in train and test; say so with splits.by: segment")
    if data.extra and data.extra.split == "paper":
        problems.append("data.extra.split: the extra corpus is for training alone")


def _budgets(recipe: Recipe, problems: list[str]) -> None:
    """Budgets of format mixed, and what a sweep is made from."""
    export, sweep = recipe.export, recipe.sweep
    if export and export.budget_gb is not None and export.budget_ratio is not None:
        problems.append("export: give budget_gb or budget_ratio, not both")
    budgeted = export and (export.budget_gb is not None or export.budget_ratio is not None)
    if export and "mixed" in export.formats and not budgeted:
        problems.append("export.formats: 'mixed' needs export.budget_gb or export.budget_ratio")
    if export and "mixed" not in export.formats and budgeted:
        problems.append("export: a budget is for format mixed, which is not among the formats")
    if not sweep:
        return
    if not recipe.translate or not recipe.evaluate or "chrf" not in (m.lower() for m in recipe.evaluate.metrics):
        problems.append("sweep: needs translate, and evaluate with chrf among its metrics")
    if any(not 0 < ratio < 1 for ratio in sweep.budget_ratios):
        problems.append("sweep.budget_ratios: each must be above 0 and below 1")
    ranked = (len(recipe.rank.layers) if recipe.rank.method == "explicit" else recipe.rank.remove) if recipe.rank else 0
    if any(not 1 <= count <= ranked for count in sweep.remove):
        problems.append(f"sweep.remove: each must be at least 1 and at most {ranked}, the layers that are ranked")


def _starts(recipe: Recipe, problems: list[str]) -> None:
    """Every model that a section names must be one that the recipe makes."""
    made = {"base"}
    made |= {"teacher"} if recipe.finetune else set()
    made |= {"pruned"} if recipe.prune else set()
    made |= {"student"} if recipe.distil else set()
    made |= {"merged"} if recipe.merge else set()
    starts = [
        ("qlora.start", recipe.qlora, "start"),
        ("trim.of", recipe.trim, "of"),
        ("export.of", recipe.export, "of"),
    ]
    for where, section, key in starts:
        made |= {"trimmed"} if where == "export.of" and recipe.trim else set()
        wanted = getattr(section, key, "auto")
        if wanted not in ("auto", *made):
            problems.append(f"{where}: this recipe makes no '{wanted}' model")
        if section and key == "of" and wanted == "auto" and recipe.qlora and not recipe.merge:
            problems.append(f"{where[:-3]}: the adapter would be left out; add merge:, or say {where}")
    for wanted in recipe.sweep.of if recipe.sweep else ():
        if wanted not in made:
            problems.append(f"sweep.of: this recipe makes no '{wanted}' model")
    made |= {"adapter"} if recipe.qlora else set()
    made |= set(recipe.export.formats) if recipe.export else set()
    for wanted in recipe.translate.systems if recipe.translate else ():
        if wanted not in made:
            problems.append(f"translate.systems: this recipe makes no '{wanted}'; it makes {', '.join(sorted(made))}")


def _trim(recipe: Recipe, problems: list[str]) -> None:
    """There must be texts to keep the tokens of."""
    trim = recipe.trim
    if trim and not trim.splits and not recipe.pseudolabel:
        problems.append("trim.splits: there are no texts to keep the tokens of")
    if trim and "extra" in trim.splits and (recipe.data is None or recipe.data.extra is None):
        problems.append("trim.splits: 'extra' needs data.extra, the out-of-domain corpus")
