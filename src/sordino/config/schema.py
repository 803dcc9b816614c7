"""The settings of a recipe: one dataclass a section, one section a stage.

This file owns every setting's name, type, default, limits and meaning. `docs/settings.md`, `sordino settings` and each
stage's `--help` are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sordino.config.setting import other_default, setting
from sordino.languages import has_spaces, language_name

SYSTEM_PROMPT = "You are a professional translator."  # the paper's

ScopeName = Literal["decoder", "encoder", "both"]
Format = Literal["bf16", "nf4", "w4a16", "w4a16-gptq", "mixed", "gguf-q8_0", "gguf-q4_k_m", "gguf-q4_0"]
Engine = Literal["transformers", "vllm"]
Precision = Literal["auto", "float32", "bfloat16", "bfloat16-mixed", "bfloat16-sharded"]
Optimizer = Literal["adamw", "adamw8bit"]


@dataclass(frozen=True)
class PromptSection:
    """How the model is asked. `{source}` and `{target}` become English language names."""

    style: Literal["chat", "base"] = setting("chat", "base: audio, then instruction, for models without chat template")
    system: str | None = setting("auto", "system prompt; auto: the paper's, where the family takes one beside audio")
    instruction: str = setting("Translate the {source} speech into {target}:", "what the model is told to do")
    example: tuple[str, ...] = setting((), "one-shot: a sentence and its translation, asked and answered before")


@dataclass(frozen=True)
class SplitSection:
    """Sizes of the held-out splits: a number of clips, or a fraction below 1. All other clips are for training."""

    select: float = setting(100, "clips that choose the layers", least=0)
    dev: float = setting(100, "clips whose loss is watched while training", least=0)
    test: float = setting(100, "clips of the final scores, used for nothing else", least=0)
    by: Literal["group", "segment"] = setting("group", "segment: by clip, as in the paper; leaks talks and speakers")


@dataclass(frozen=True)
class CorpusSection:
    """A corpus on disk and what to take of it; docs/corpora.md shows how each one lies on disk."""

    corpus: str = setting("folder", "acl6060, covost2, folder, iwslt or mustc")
    path: str = setting("", "the corpus's directory; relative to where the command runs")
    texts: str | None = setting(None, "table of texts (iwslt: list of segments), where the directory holds several")
    subsets: tuple[str, ...] = setting((), "of acl6060, covost2, mustc: parts as published, [dev]; default: the usual")
    split: Literal["own", "paper"] = setting("own", "paper (acl6060): test is the paper's 100 segments; leaks talks")
    rows: int | None = setting(None, "a seeded sample of so many clips, drawn after the limits below", least=1)
    min_seconds: float | None = setting(None, "leave out shorter clips; by the table or the audio file's header")
    max_seconds: float | None = setting(None, "leave out longer clips; by the table or the audio file's header")
    max_ratio: float | None = setting(
        None, "leave out translations so many times longer or shorter than usual (2: twice or half)", least=1
    )


@dataclass(frozen=True)
class DataSection(CorpusSection):
    """The corpus, its splits, and out-of-domain clips."""

    splits: SplitSection = SplitSection()
    extra: CorpusSection | None = setting(None, "out-of-domain training clips, e.g. CoVoST 2")


@dataclass(frozen=True)
class TrainSection:
    """One training: what finetune, distil and qlora share."""

    epochs: float = setting(3, "passes over the training clips", above=0)
    batch_size: int = setting(4, "clips a step", least=1)
    accumulate: int = setting(1, "parts that a step's clips are run in: less memory, the same step", least=1)
    optimizer: Optimizer = setting("adamw", "adamw8bit: moments in 8 bits, 2 bytes a weight instead of 8 or 4")
    lr: float = setting(1e-5, "peak learning rate of AdamW", above=0)
    scheduler: Literal["cosine", "linear", "constant"] = setting("cosine", "learning rate after the warm-up")
    warmup_ratio: float = setting(0.0, "share of the steps in which the learning rate rises", least=0, below=1)
    weight_decay: float = setting(0.0, "of matrices; norms and biases are not decayed", least=0)
    max_grad_norm: float = setting(1.0, "gradients of a larger norm are scaled down to it", above=0)
    precision: Precision = setting(
        "auto", "auto: float32 on a CPU, bfloat16-mixed on an accelerator (docs/training.md)"
    )
    rounding: Literal["stochastic", "nearest"] = setting(
        "stochastic", "precision bfloat16: of the weights after a step; to the nearest, small updates are lost"
    )
    gradient_checkpointing: bool = setting(False, "compute activations twice instead of keeping them")
    freeze: tuple[Literal["encoder", "projector", "embeddings"], ...] = setting((), "parts that are not trained")
    max_steps: int | None = setting(None, "stop after so many steps", least=1)
    checkpoint_steps: int | None = setting(None, "steps between resume points; default: an epoch", least=1)


@dataclass(frozen=True)
class FinetuneSection(TrainSection):
    """Full-parameter fine-tuning of the base model: the teacher."""

    weight_decay: float = other_default(TrainSection, "weight_decay", 0.001)


@dataclass(frozen=True)
class RankSection:
    """The order in which translation can spare layers."""

    method: Literal["iterative", "middle", "block", "explicit"] = setting(
        "iterative", "how layers are chosen (docs/method.md)"
    )
    scope: ScopeName = setting("decoder", "where the candidates are")
    criterion: Literal["auto", "chrf", "chrf++", "bleu", "loss", "kl", "influence", "angular"] = setting(
        "auto", "what a candidate is scored by (docs/method.md); auto: chrf for zh and ja, else chrf++"
    )
    search: Literal["exact", "racing"] = setting("exact", "racing: drop candidates on part of the clips; not exact")
    polish: Literal["none", "swap"] = setting(
        "none", "swap: after the search, one removed for one kept layer while that helps"
    )
    targets: tuple[str, ...] = setting((), "rank by the mean over several target languages; default: the recipe's")
    remove: int = setting(8, "layers to remove, one a round", least=1)
    layers: tuple[str, ...] = setting((), "explicit: 12, decoder.12 or encoder.3, in removal order")
    protect_first: int = setting(1, "layers at the start that are no candidates", least=0)
    protect_last: int = setting(1, "layers at the end that are no candidates", least=0)
    clips: int | None = setting(None, "clips of the select split; default: all", least=1)
    memory_mb: int | None = setting(
        None, "MiB for batches; default: a quarter of the model; on an accelerator half of what is free"
    )
    max_new_tokens: int = setting(256, "tokens of the longest translation", least=1)


@dataclass(frozen=True)
class PruneSection:
    """The model without the ranked layers."""

    of: Literal["auto", "teacher", "base"] = setting("auto", "model to prune; auto: the teacher where there is one")
    remove: int | None = setting(None, "take so many of the ranking's removals; default: all", least=1)


@dataclass(frozen=True)
class FilterSection:
    """Which of the teacher's translations are left out. `null` is no limit."""

    cut: bool = setting(True, "those without an end after max_new_tokens")
    max_ratio: float | None = setting(
        None, "those so many times longer or shorter than the reference, in characters (2: twice or half)", least=1
    )
    health: bool = setting(False, "those with any fault of the output health (docs/evaluation.md)")
    min_chrf: float | None = setting(
        None, "those with a lower sentence chrF against the reference, 0 to 100", least=0, most=100
    )
    min_comet: float | None = setting(None, "those with a lower COMET, about 0 to 1; needs source texts")
    comet: str = setting("comet", "which COMET: comet:MODEL, as in evaluate.metrics")


@dataclass(frozen=True)
class PseudolabelSection:
    """The teacher's translations of the training audio."""

    method: Literal["greedy", "mbr"] = setting("greedy", "mbr: of several samples the one that the others agree with")
    samples: int = setting(8, "mbr: samples drawn for each clip, and compared with each other", least=2)
    epsilon: float = setting(0.02, "mbr: tokens less probable than this are not drawn", least=0, below=1)
    # at 1 the demo's samples are too bad for eight to vote down
    temperature: float = setting(0.5, "mbr: of sampling; lower for few samples", above=0)
    keep: int = setting(1, "mbr: different samples of each clip to train on, the most agreed-upon first", least=1)
    filter: FilterSection = FilterSection()
    engine: Engine = setting("transformers", "vllm: decode in an environment of its own (docs/vllm.md); greedy alone")
    batch_size: int = setting(16, "translations at once", least=1)
    max_new_tokens: int = setting(256, "tokens of the longest translation", least=1)


@dataclass(frozen=True)
class MixSection:
    """What a student is trained on. Pairs (audio, text) that occur twice are kept once."""

    authentic: bool = setting(True, "the corpus's own translations")
    pseudo: bool = setting(True, "the teacher's translations")
    oversample: int = setting(1, "times that these pairs are repeated", least=1)
    extra: int = setting(0, "out-of-domain clips to add (data.extra)", least=0)


@dataclass(frozen=True)
class MatchSection(TrainSection):
    """An encoder healed by matching the states of the encoder that it was made from: no texts, only the audio."""


@dataclass(frozen=True)
class LogitsSection:
    """The teacher's probabilities of every token of the mix, learnt beside the texts (docs/method.md)."""

    weight: float = setting(
        0.0, "of the divergence from them in the loss, the rest is cross-entropy; 0: texts alone", least=0, most=1
    )
    top: int = setting(64, "likeliest tokens kept of each position; all others together are one more", least=1)
    ce_only_end: float = setting(0.0, "share of the steps, at the end, on cross-entropy alone", least=0, below=1)


@dataclass(frozen=True)
class DistilSection(TrainSection):
    """Healing the pruned student by full-parameter training."""

    epochs: float = other_default(TrainSection, "epochs", 4)
    mix: MixSection = MixSection()
    logits: LogitsSection = LogitsSection()
    heal: Literal["once", "each"] = setting("once", "each: from the teacher, train after every single removal")
    match: MatchSection | None = setting(
        None, "before that, heal an encoder without some of its layers: match the states of the whole one"
    )


@dataclass(frozen=True)
class QloraSection(TrainSection):
    """A low-rank adapter trained on a 4-bit model."""

    epochs: float = other_default(TrainSection, "epochs", 4)
    start: Literal["auto", "base", "teacher", "pruned", "student"] = setting(
        "auto", "model to train on; auto: the latest of the chain"
    )
    quantize: Literal["nf4", "none"] = setting("nf4", "how that model is held while training")
    rank: int = setting(64, "rank of the adapter's matrices", least=1)
    alpha: int = setting(128, "scale of the adapter", least=1)
    rslora: bool = setting(True, "scale by alpha / sqrt(rank) instead of alpha / rank")
    dropout: float = setting(0.0, "share of the adapter's inputs that are dropped", least=0, below=1)
    scope: Literal["all", "decoder"] = setting("all", "all: every linear layer, audio encoder and projector included")
    mix: MixSection = MixSection()
    logits: LogitsSection = LogitsSection()


@dataclass(frozen=True)
class MergeSection:
    """The adapter folded into the 16-bit model that it was trained on; quantization comes after. No settings."""


@dataclass(frozen=True)
class TrimSection:
    """The vocabulary without the tokens that the training texts do not need."""

    tokens: int | None = setting(None, "rows to keep, most frequent first; default: all that the texts need", least=1)
    splits: tuple[Literal["train", "extra", "select", "dev"], ...] = setting(
        ("train",), "splits whose texts count, beside the teacher's translations"
    )
    of: Literal["auto", "base", "teacher", "pruned", "student", "merged"] = setting(
        "auto", "model to trim; auto: the latest of the chain"
    )


@dataclass(frozen=True)
class PartCostsSection:
    """How it is measured which parts need their bits (docs/budget.md)."""

    measure: Literal["kl", "loss"] = setting("kl", "what a part loses in fewer bits: divergence, or loss of references")
    clips: int = setting(32, "clips of the select split", least=1)


@dataclass(frozen=True)
class SensitivitySection(PartCostsSection):
    """How format mixed measures which parts need their bits (docs/budget.md)."""

    drop: bool = setting(True, "layers that are ranked but not pruned may go too")


@dataclass(frozen=True)
class QatSection(TrainSection):
    """The last model trained through the rounding of its export, which it is then stored in (docs/method.md)."""

    epochs: float = other_default(TrainSection, "epochs", 2)
    of: Literal["auto", "base", "teacher", "pruned", "student", "merged", "trimmed"] = setting(
        "auto", "model to train and round; auto: the latest of the chain"
    )
    format: Literal["mixed", "nf4"] = setting("mixed", "the rounding, and how the result is stored (docs/formats.md)")
    budget_gb: float | None = setting(None, "mixed: limit of the bytes of its weights files, in 10^9 bytes", above=0)
    budget_ratio: float | None = setting(
        None, "mixed: the same limit, as a share of the 16-bit teacher's bytes", above=0, below=1
    )
    sensitivity: PartCostsSection = PartCostsSection()
    match: MatchSection | None = setting(
        None, "before that, heal the rounded encoder: match the states of the one that was not rounded"
    )
    mix: MixSection = MixSection()
    logits: LogitsSection = LogitsSection()


@dataclass(frozen=True)
class ExportSection:
    """The deployable forms of the last model."""

    formats: tuple[Format, ...] = setting((), "forms to write (docs/formats.md); default: nf4; with a budget, mixed")
    of: Literal["auto", "base", "teacher", "pruned", "student", "merged", "trimmed", "qat"] = setting(
        "auto", "model to export; auto: the latest of the chain"
    )
    budget_gb: float | None = setting(None, "mixed: limit of the bytes of its weights files, in 10^9 bytes", above=0)
    budget_ratio: float | None = setting(
        None, "mixed: the same limit, as a share of the 16-bit teacher's bytes", above=0, below=1
    )
    sensitivity: SensitivitySection = SensitivitySection()
    calibration: int = setting(128, "training clips that w4a16-gptq is rounded for", least=1)


@dataclass(frozen=True)
class TranslateSection:
    """Translations by the models of the chain, and their speed."""

    split: Literal["dev", "test"] = setting("test", "clips to translate")
    systems: tuple[str, ...] = setting((), "models and formats to translate with; default: all")
    batch_size: int = setting(16, "clips at once", least=1)
    timed: int | None = setting(
        None,
        "measure speed on so many clips, of all lengths; the others' audio is encoded once for all; default: all",
        least=1,
    )
    max_new_tokens: int = setting(256, "tokens of the longest translation", least=1)


@dataclass(frozen=True)
class EvaluateSection:
    """Scores of the translations, sizes and speeds of the models."""

    metrics: tuple[str, ...] = setting(
        ("bleu", "chrf", "chrf++"), "scores; also comet and comet:MODEL, which need source texts"
    )
    bootstrap: int = setting(1000, "resamples behind each 95 % interval; 0: no intervals", least=0)
    significance: bool = setting(True, "test every system against the teacher, with ten times as many shuffles")
    clean: bool = setting(False, "score also without preambles, line breaks and outer quotation marks")


@dataclass(frozen=True)
class ReportSection:
    """One offline page of all results."""

    samples: int = setting(8, "clips shown side by side", least=0)
    audio: bool = setting(True, "samples play inside the page, which takes up to 1 MB; false: texts alone")


@dataclass(frozen=True)
class SweepSection:
    """Smaller forms of the chain's models, made, scored and weighed, to be drawn as bytes against quality."""

    of: tuple[Literal["base", "teacher", "pruned", "student", "merged", "trimmed"], ...] = setting(
        (), "models to make smaller; default: teacher and last model"
    )
    formats: tuple[Format, ...] = setting((), "forms to make; default: all, without those that cannot be made here")
    budget_ratios: tuple[float, ...] = setting(
        (0.35, 0.25, 0.22, 0.2, 0.17), "mixed: budgets, as shares of the 16-bit teacher's bytes", above=0, below=1
    )
    remove: tuple[int, ...] = setting(
        (), "the teacher without so many ranked layers, not healed; default: half of them", least=1
    )


@dataclass(frozen=True)
class ResourcesSection:
    """What the work is spread over (docs/training.md, docs/cluster.md). No result depends on it."""

    devices: int = setting(1, "GPUs that a training is spread over; on a CPU, processes", least=1)
    tflops: float | None = setting(None, "10^12 operations a second that one device reaches, for `plan`", above=0)
    executor: Literal["threads", "ray"] = setting(
        "threads", "who ranks, labels, computes logits, translates, sweeps; ray: workers of a Ray cluster (extra ray)"
    )
    workers: int | None = setting(
        None, "ray: workers, each with a model; default: as many as the cluster holds", least=1
    )
    worker_cpus: int = setting(1, "ray: cores of each worker", least=1)
    ray_address: str | None = setting(
        None, "ray: a running cluster (host:port, auto); default: $RAY_ADDRESS, else one on this machine, while it runs"
    )


@dataclass(frozen=True)
class Recipe:
    """One experiment. A section that is present is a stage that runs; `STAGE: false` leaves one out."""

    name: str = setting("{source}-{target}", "the run's directory below `out`; language codes are filled in")
    out: str = setting("runs", "where the runs lie")
    model: str = setting("", "the base model: a local directory or a Hub id")
    revision: str | None = setting(None, "branch, tag or commit of a Hub model")
    source: str = setting("en", "language of the audio: a code or an English name")
    target: str = setting("de", "language of the translations: a code or an English name")
    seed: int = setting(0, "of every random number", least=0)
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto: an accelerator where there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto", "of the weights, except while training")
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = setting(
        None, "implementation of attention in transformers; default: its own choice"
    )
    encode_batch: int = setting(
        1, "clips that the encoder takes at once; more is for a GPU, and rounds otherwise (docs/training.md)", least=1
    )
    resources: ResourcesSection = ResourcesSection()
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
    qat: QatSection | None = None
    export: ExportSection | None = None
    translate: TranslateSection | None = TranslateSection()
    evaluate: EvaluateSection | None = EvaluateSection()
    report: ReportSection | None = ReportSection()
    sweep: SweepSection | None = None

    @property
    def directory(self) -> Path:
        return Path(self.out) / self.name

    @property
    def criterion(self) -> str:
        """The ranking's criterion with `auto` resolved."""
        if self.rank and self.rank.criterion != "auto":
            return self.rank.criterion
        targets = (self.rank.targets if self.rank else ()) or (self.target,)
        return "chrf++" if all(map(has_spaces, targets)) else "chrf"


def fill_instruction(template: str, source: str, target: str) -> str:
    """The instruction with English language names in place of {source} and {target}."""
    return template.replace("{source}", language_name(source)).replace("{target}", language_name(target))
