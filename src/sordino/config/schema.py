"""The settings of a recipe: one dataclass a section, one section a stage.

These tables are the reference: one place owns a setting's name, type, default and meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
    # auto: chrF for zh and ja, else chrF++; the others are explained in pruning/criteria.py
    criterion: Literal["auto", "chrf", "chrf++", "bleu", "loss", "kl", "influence", "angular"] = "auto"
    search: Literal["exact", "racing"] = "exact"  # racing drops candidates on part of the clips: faster, not exact
    targets: tuple[str, ...] = ()  # rank by the mean over several target languages; default: the recipe's
    remove: int = 8  # layers to remove, one a round
    layers: tuple[str, ...] = ()  # explicit: "12" or "decoder.12" or "encoder.3", in removal order
    protect_first: int = 1  # layers at the start that are never candidates
    protect_last: int = 1
    clips: int | None = None  # so many clips of the select split; default: all
    memory_mb: int | None = None  # for batches; default: a quarter of the model, 96 MiB at least
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
    quantize: Literal["nf4", "none"] = "nf4"
    rank: int = 64
    alpha: int = 128
    rslora: bool = True
    dropout: float = 0.0
    scope: Literal["all", "decoder"] = "all"  # all: every linear layer, audio encoder and projector included
    mix: MixSection = MixSection()


@dataclass(frozen=True)
class MergeSection:
    """The adapter goes into the 16-bit model it was trained on; quantization comes after."""


@dataclass(frozen=True)
class TrimSection:
    tokens: int | None = None  # rows to keep, most frequent first; default: all that the texts need
    splits: tuple[Literal["train", "extra", "select", "dev"], ...] = ("train",)  # and the teacher's translations
    of: Literal["auto", "base", "teacher", "pruned", "student", "merged"] = "auto"  # auto: the latest model


@dataclass(frozen=True)
class SensitivitySection:
    """How format mixed finds out which parts need their bits."""

    measure: Literal["kl", "loss"] = "kl"  # quantization/sensitivity.py
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


def fill_instruction(template: str, source: str, target: str) -> str:
    """The instruction with English language names in place of {source} and {target}."""
    return template.replace("{source}", language_name(source)).replace("{target}", language_name(target))
