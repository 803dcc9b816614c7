"""The report's values as the rows of its tables and bars: formatted, in order, nothing left to count."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sordino.report.curves import histogram, loss_curve
from sordino.report.model import TEACHER, Mixture, Report, ScoredClip, Split, StageCost, System, Training
from sordino.report.rows import DASH, megabytes, printed, rate

# order and colour (its place) of the parts in a bar; what is not here comes last, all in one colour
PARTS = ("audio_encoder", "projector", "embedding", "decoder", "head", "adapter", "other")
WORST = 200  # clips of the table; scores.json has all
LAYER = re.compile(r"^(?P<layer>(?:decoder|encoder)\.\d+)(?:\.(?P<part>.+))?$")
WHOLE = "all"  # column of a layer, or another part, that has bits as a whole


@dataclass(frozen=True)
class Segment:
    """A stretch of a bar. share: of the longest bar, in per cent; colour: of the style sheet."""

    label: str
    size: str
    share: float
    colour: int


@dataclass(frozen=True)
class Bar:
    """A row of bars. value: what stands behind it; others: further cells."""

    label: str
    segments: tuple[Segment, ...]
    value: str
    others: tuple[str, ...] = ()


def part_bars(systems: Sequence[System]) -> list[Bar]:
    """Bytes of each system by part."""
    sizes = [(system, system.size.bytes_by_part) for system in systems if system.size and system.size.bytes_by_part]
    longest = max((sum(parts.values()) for _, parts in sizes), default=0)
    return [
        Bar(system.label, _segments(parts, longest), megabytes(system.size.weights_bytes))
        for system, parts in sizes
        if system.size
    ]


def _segments(parts: Mapping[str, int], longest: int) -> tuple[Segment, ...]:
    ordered = sorted(parts, key=lambda name: (_colour(name), name))
    return tuple(
        Segment(name.replace("_", " "), megabytes(parts[name]), 100 * parts[name] / longest, _colour(name))
        for name in ordered
    )


def _colour(part: str) -> int:
    return PARTS.index(part) if part in PARTS else len(PARTS) - 1


def part_legend(bars: Sequence[Bar]) -> list[tuple[str, int]]:
    """(part, colour) of everything in the bars, in their order."""
    return sorted({(s.label, s.colour) for bar in bars for s in bar.segments}, key=lambda each: (each[1], each[0]))


def speed_bars(systems: Sequence[System]) -> list[Bar]:
    """Real-time factor of each system; beside it tokens a second and peak memory."""
    timed = [(system.label, system.speed) for system in systems if system.speed]
    slowest = max((speed.rtf for _, speed in timed), default=0.0)
    return [
        Bar(
            label,
            (Segment("RTF", rate(speed.rtf), 100 * speed.rtf / slowest, 0),),
            rate(speed.rtf),
            (rate(speed.tokens_per_second) if speed.tokens else DASH, megabytes(speed.peak_memory_bytes)),
        )
        for label, speed in timed
    ]


def cost_bars(costs: Sequence[StageCost]) -> list[Bar]:
    """Time of each stage; beside it peak memory and device."""
    longest = max((cost.seconds for cost in costs), default=0.0) or 1.0
    return [
        Bar(
            cost.stage,
            (Segment(cost.stage, duration(cost.seconds), 100 * cost.seconds / longest, 0),),
            duration(cost.seconds),
            (DASH if cost.peak_memory_bytes is None else megabytes(cost.peak_memory_bytes), cost.device),
        )
        for cost in costs
    ]


def duration(seconds: float) -> str:
    """0.2 s, 37 s, 3 min 37 s, 2 h 05 min."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


@dataclass(frozen=True)
class SplitRow:
    """hours, and the shortest, middle and longest clip in seconds, as printed; drawing: of all lengths."""

    name: str
    clips: str
    hours: str
    shortest: str
    median: str
    longest: str
    drawing: Markup


def split_rows(splits: Sequence[Split]) -> list[SplitRow]:
    """All histograms share one axis."""
    longest = max((length for split in splits for length in split.seconds), default=0.0)
    return [_split_row(split, longest) for split in splits if split.seconds]


def _split_row(split: Split, longest: float) -> SplitRow:
    lengths = split.seconds
    return SplitRow(
        split.name,
        clips=f"{split.clips:,}",
        hours=f"{sum(lengths) / 3600:.2f}",
        shortest=f"{min(lengths):.1f}",
        median=f"{statistics.median(lengths):.1f}",
        longest=f"{max(lengths):.1f}",
        drawing=histogram(lengths, longest),
    )


@dataclass(frozen=True)
class ClipRow:
    """A clip in the table: numbers to sort by, and as printed. change: against the teacher; texts: (who, text)."""

    id: str
    length: str
    score: str
    change: str
    sort_score: float
    sort_change: float
    sort_length: float
    texts: tuple[tuple[str, str], ...]


def clip_rows(report: Report, chosen: System | None, metric: str | None) -> list[ClipRow]:
    """The clips that a system does worst on, worst first. Empty without a score for each clip."""
    scored = [clip for clip in report.clips if chosen and metric and chosen.name in clip.scores]
    if chosen is None or metric is None:
        return []
    worst = sorted(scored, key=lambda clip: clip.scores[chosen.name])[:WORST]
    shown = [s for s in report.systems if s.name in (chosen.name, TEACHER)]
    return [_clip_row(clip, chosen, metric, shown) for clip in worst]


def _clip_row(clip: ScoredClip, chosen: System, metric: str, shown: Sequence[System]) -> ClipRow:
    score = clip.scores[chosen.name]
    teacher = clip.scores.get(TEACHER) if chosen.name != TEACHER else None
    change = 0.0 if teacher is None else score - teacher
    texts = [("source", clip.source), ("reference", clip.reference)]
    texts += [(system.label, clip.texts[system.name]) for system in shown if system.name in clip.texts]
    return ClipRow(
        clip.id,
        DASH if clip.seconds is None else f"{clip.seconds:.1f}",
        printed(metric, score),
        DASH if teacher is None else f"{'+' if change > 0 else ''}{printed(metric, change)}",
        score,
        change,
        clip.seconds or 0.0,
        tuple((who, text) for who, text in texts if text or who != "source"),
    )


def bits_table(mixture: Mixture) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(columns, rows) of format mixed: a row a layer or other part, a column each kind of part in a layer."""
    columns: list[str] = []
    rows: dict[str, dict[str, str]] = {}
    for part, bits in mixture.bits.items():
        layer = LAYER.match(part)
        row, column = (layer["layer"], layer["part"] or WHOLE) if layer else (part, WHOLE)
        rows.setdefault(row, {})[column] = str(bits)
        columns += [column] if column not in columns else []
    return columns, [(row, [cells.get(column, "") for column in columns]) for row, cells in rows.items()]


def curves(trainings: Sequence[Training]) -> list[tuple[str, Markup, str]]:
    """(training, drawing, last losses in words)."""
    return [(training.label, loss_curve(training), _ended(training)) for training in trainings]


def _ended(training: Training) -> str:
    broken = sum(not math.isfinite(loss) for _, loss in training.losses)
    words = [f"{len(training.losses):,} steps"] + ([f"{broken:,} of them without a finite loss"] if broken else [])
    if training.dev_losses:
        words.append(f"dev loss {training.dev_losses[-1][1]:.3f} at the end")
    return ", ".join(words)
