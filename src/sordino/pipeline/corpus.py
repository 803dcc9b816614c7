"""Read a recipe's corpora: every clip is heard once, and what cannot be used is listed, not skipped in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sordino.config.schema import CorpusSection, Recipe
from sordino.data import corpora
from sordino.data.checks import BadClip, check_audio, check_texts
from sordino.data.choose import choose
from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.models import registry
from sordino.models.control_tokens import control_ids, control_tokens
from sordino.runtime.progress import bar


@dataclass
class Corpus:
    """clips: that can be used; splits: the corpus' own, by clip id; bad: rows that cannot be used, for people."""

    clips: list[Clip] = field(default_factory=list)
    splits: dict[str, corpora.Split] = field(default_factory=dict)
    bad: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Hearer:
    """What the base model can take. window: seconds of audio at once; control_tokens: those that a text holds."""

    window: float
    control_tokens: Callable[[str], Sequence[str]]

    @classmethod
    def of(cls, recipe: Recipe) -> Hearer:
        """By the base model's processor. Raises FamilyError."""
        family = registry.family_of(recipe.model, recipe.revision)
        processor = registry.load_processor(family, recipe.model, recipe.revision)
        control = control_ids(processor.tokenizer)
        return cls(
            family.audio.window(processor) / family.audio.sampling_rate,
            lambda text: control_tokens(processor.tokenizer, text, control),
        )


def read(
    recipe: Recipe, section: CorpusSection, hearer: Hearer, audio_dir: Path, label: str, training_only: bool = False
) -> Corpus:
    """A corpus as the recipe limits it.

    hearer: what clips are for; audio_dir: where a corpus that keeps its audio inside tables unpacks it; training_only:
    what the corpus keeps for testing is left out. Raises DataError where nothing can be used.
    """
    source = corpora.load(
        section.corpus,
        section.path,
        recipe.source,
        recipe.target,
        section.texts,
        audio_dir=audio_dir,
        subsets=section.subsets,
        split=section.split,
    )
    bad = [{"id": row.id, "problem": row.problem} for row in source.problems]
    pool = [clip for clip in source.clips if not training_only or source.splits.get(clip.id, "train") == "train"]
    clips = choose(
        pool,
        section.rows,
        recipe.seed,
        min_seconds=section.min_seconds,
        max_seconds=section.max_seconds,
        max_ratio=section.max_ratio,
    )
    if not clips and pool:
        raise DataError(
            f"No clip of {section.path} is within the limits.", "Widen min_seconds, max_seconds, max_ratio."
        )
    with bar(label, len(clips)) as advance:
        good, broken = check_audio(clips, lambda _: advance(1))
    broken += [_too_long(clip, hearer.window) for clip in good if (clip.seconds or 0) > hearer.window]
    # references of the test split are only compared
    asked = [clip for clip in good if source.splits.get(clip.id) != "test"]
    broken += check_texts(asked, hearer.control_tokens)
    bad += [{"id": b.id, "audio": b.audio, "problem": f"{b.problem} {b.remedy}".strip()} for b in broken]
    unusable = {b.id for b in broken}
    usable = [clip for clip in good if clip.id not in unusable]
    if not usable:
        raise DataError(f"{section.path} holds no usable clip. " + (bad[0]["problem"] if bad else ""))
    return Corpus(usable, dict(source.splits), bad)


def _too_long(clip: Clip, window: float) -> BadClip:
    problem = f"{clip.audio}: {clip.seconds:.1f} s, but the model hears {window:g} s at once."
    return BadClip(clip.id, clip.audio, problem, "Cut it.")


def listed(bad: Sequence[dict[str, str]], shown: int) -> str:
    """Rows that cannot be used, the first of them by name and problem."""
    lines = [f"  {row['id']}: {row['problem']}" for row in bad[:shown]]
    if len(bad) > shown:
        lines.append(f"  and {len(bad) - shown} more")
    return f"{len(bad)} row{'s' * (len(bad) > 1)} of the corpus cannot be used:\n" + "\n".join(lines)
