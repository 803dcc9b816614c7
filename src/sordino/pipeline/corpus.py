"""Read a recipe's corpora: every clip is heard once, and what cannot be used is listed, not skipped in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sordino.config.schema import CorpusSection, DataSection, Recipe
from sordino.data import corpora, splits
from sordino.data.checks import check_audio, check_texts
from sordino.data.choose import choose
from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.models import prompts, registry
from sordino.models.control_tokens import control_tokens
from sordino.runtime.progress import bar


@dataclass
class Corpus:
    """clips: that can be used; splits: the corpus' own, by clip id, `fixed` where a user wrote them; bad: rows that
    cannot be used, for people; notes: what they should know of how it was read; guessed: nobody named the groups."""

    clips: list[Clip] = field(default_factory=list)
    splits: dict[str, corpora.Split] = field(default_factory=dict)
    bad: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fixed: bool = False
    guessed: bool = False


@dataclass(frozen=True)
class Listener:
    """What the base model takes. window: seconds that it hears at once; control_tokens: of a text, its tokenizer's."""

    window: float
    control_tokens: Callable[[str], list[str]]


def listener_of(recipe: Recipe) -> Listener:
    """Of the recipe's base model. Raises RecipeError for a prompt that holds control tokens."""
    family = registry.family_of(recipe.model, recipe.revision)
    processor = registry.load_processor(family, recipe.model, recipe.revision)
    prompts.refuse_control_tokens(recipe.prompt, processor.tokenizer)
    window = family.audio.window(processor) / family.audio.sampling_rate
    return Listener(window, partial(control_tokens, processor.tokenizer))


def read(
    recipe: Recipe, section: CorpusSection, listener: Listener, audio_dir: Path, label: str, training_only: bool = False
) -> Corpus:
    """A corpus as the recipe limits it.

    audio_dir: where a corpus that keeps its audio inside tables unpacks it; training_only: what the corpus keeps for
    testing is left out. Raises DataError where nothing can be used, and for a group in two splits before anything is
    decoded.
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
    if isinstance(section, DataSection) and section.splits.by == "group":
        splits.check_groups(clips, source.splits)
    with bar(label, len(clips)) as advance:
        good, broken = check_audio(clips, lambda _: advance(1), window=listener.window)
    trained = [clip for clip in good if source.splits.get(clip.id) != "test"]  # a reference is only compared
    broken += check_texts(trained, listener.control_tokens)
    bad += [{"id": b.id, "audio": b.audio, "problem": f"{b.problem} {b.remedy}".strip()} for b in broken]
    unusable = {clip.id for clip in broken}
    usable = [clip for clip in good if clip.id not in unusable]
    if not usable:
        raise DataError(f"{section.path} holds no usable clip. " + (bad[0]["problem"] if bad else ""))
    return Corpus(usable, dict(source.splits), bad, list(source.notes), source.own_splits, source.guessed_groups)


def listed(bad: Sequence[dict[str, str]], shown: int) -> str:
    """Rows that cannot be used, the first of them by name and problem."""
    lines = [f"  {row['id']}: {row['problem']}" for row in bad[:shown]]
    if len(bad) > shown:
        lines.append(f"  and {len(bad) - shown} more")
    return f"{len(bad)} row{'s' * (len(bad) > 1)} of the corpus cannot be used:\n" + "\n".join(lines)
