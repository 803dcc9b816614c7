"""What a report says, apart from how it looks: the values that the page and the terminal table are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sordino.measure.size import Size
from sordino.measure.speed import Speed
from sordino.metrics.base import Score
from sordino.metrics.health import Health
from sordino.metrics.paired import Paired

TEACHER = "teacher"  # System.name that sizes and retention are compared with


@dataclass(frozen=True)
class System:
    """One model of the chain, as it was scored.

    name: key ('teacher', 'student', ...); label: as printed. decoder_layers: kept decoder layers.
    scores: by metric key ('bleu', 'chrf', 'chrf++', ...); retention: per cent of the teacher's score, by metric key.
    significance: tests against the teacher, by metric key; groups: metric key -> group -> score.
    cleaned: scores of the outputs without their wrapping; cleaned_counts: outputs that each rule of it changed.
    lengths: score in the main metric by range of clip lengths.
    path: directory or Hub id, as a command names it; empty for a model that is thrown away. section: of the recipe,
    that made it. settings: recipe overrides that make it again, of a sweep's point.
    Whatever was not measured is None or absent and printed as a dash.
    """

    name: str
    label: str
    decoder_layers: int | None = None
    size: Size | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    retention: Mapping[str, float] = field(default_factory=dict)
    speed: Speed | None = None
    health: Health | None = None
    significance: Mapping[str, Paired] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cleaned: Mapping[str, Score] = field(default_factory=dict)
    cleaned_counts: Mapping[str, int] = field(default_factory=dict)
    lengths: Mapping[str, float] = field(default_factory=dict)
    path: str = ""
    section: str = ""
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One layer taken out on trial in the importance search.

    round: as the search counts. scope: 'decoder' or 'encoder'. layer: index in the unpruned model.
    score: of the model without it (and without those removed earlier), in the report's criterion.
    removed: whether the round removed it.
    """

    round: int
    scope: str
    layer: int
    score: float
    removed: bool


@dataclass(frozen=True)
class Removal:
    """A layer that a search removed, and how sure that was.

    layer: 'decoder.12'. clips: select clips that score and interval (95 %, bootstrap) without it are of. probability:
    share of resamples of them in which this removal is the best of its round; runner_up: what else might have gone.
    """

    layer: str
    clips: int
    score: float
    interval: tuple[float, float]
    probability: float
    runner_up: str | None
    runner_up_probability: float


@dataclass(frozen=True)
class Sample:
    """One clip with what each system made of it. source: transcript, may be empty; hypotheses: by System.name.

    audio: the clip as MP3, empty where it is not on the page; silent: why not, where it was to be.
    """

    id: str
    source: str
    reference: str
    hypotheses: Mapping[str, str]
    audio: bytes = b""
    silent: str = ""


@dataclass(frozen=True)
class ScoredClip:
    """One clip of the scored split. seconds: None where it is not recorded; texts, scores: by System.name, the scores
    in the main metric."""

    id: str
    seconds: float | None
    source: str
    reference: str
    texts: Mapping[str, str]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    """One training's log. label: what was trained; losses, dev_losses: (step, loss), the latter once an epoch."""

    label: str
    losses: tuple[tuple[int, float], ...]
    dev_losses: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class StageCost:
    """What a finished stage took. peak_memory_bytes: as stage.json has it, of the whole process or of the
    accelerator."""

    stage: str
    seconds: float
    peak_memory_bytes: int | None
    device: str


@dataclass(frozen=True)
class Split:
    """One split of the corpus. seconds: lengths of its clips, as far as they are recorded."""

    name: str
    clips: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Mixture:
    """What format mixed was given and made of it. bits: by part, 'decoder.3.mlp'; dropped: layers left out."""

    budget_bytes: int
    predicted_bytes: int
    bits: Mapping[str, int]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A whole report. systems: in the chain's order. criterion: metric key of the trials.

    facts: printed as they are ('target language', 'split', 'clips', 'seed', 'machine', ...).
    notes: what a reader must know before believing a number (a leaking split, a missing baseline).
    removals: of the search, in order; lower_is_better: of the criterion.
    frontier: names of the systems that no other beats in size and quality; knee: the one after which bytes stop paying.
    groups: clips of each group (talk, speaker) that has scores of its own; no_groups: why there are none.
    lengths: clips of each range of lengths that has scores of its own.
    directory: of the run, and recipe: its file, as commands name them, empty where there is none; links: label ->
    address of a file beside the page.
    """

    title: str
    facts: Mapping[str, str]
    systems: tuple[System, ...]
    trials: tuple[Trial, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    criterion: str
    groups: Mapping[str, int] = field(default_factory=dict)
    no_groups: str = ""
    removals: tuple[Removal, ...] = ()
    lower_is_better: bool = False
    frontier: tuple[str, ...] = ()
    knee: str = ""
    lengths: Mapping[str, int] = field(default_factory=dict)
    clips: tuple[ScoredClip, ...] = ()
    trainings: tuple[Training, ...] = ()
    costs: tuple[StageCost, ...] = ()
    splits: tuple[Split, ...] = ()
    mixture: Mixture | None = None
    directory: str = ""
    recipe: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
