"""Scores of each group (talk, speaker) of a test set: a mean hides the one talk that a small model fails on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sordino.metrics.base import Metric, Score

MIN_CLIPS = 2  # a corpus score of one sentence says nothing
MAX_GROUPS = 50  # a table that someone reads


def deal(groups: Sequence[str | None]) -> dict[str, list[int]] | str:
    """Group -> indices of its clips, in order of appearance; or in words, why there is no table by group."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(index)
    if not members:
        return "the clips name no group (talk or speaker)"
    large = {group: clips for group, clips in members.items() if len(clips) >= MIN_CLIPS}
    if not large:
        return f"each of the {len(members)} groups is a single clip"
    if len(large) > MAX_GROUPS:
        return f"there are {len(large)} groups, more than {MAX_GROUPS}"
    return large


def scores(
    metric: Metric,
    whole: Score,
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str,
    groups: Mapping[str, Sequence[int]],
) -> dict[str, float]:
    """Corpus score of each group. `whole` is the score of all clips, whose segments are used where they suffice."""
    values = {}
    for group, clips in groups.items():
        if metric.is_mean and whole.segments is not None:
            values[group] = sum(whole.segments[i] for i in clips) / len(clips)
        else:
            texts, their_references = [hypotheses[i] for i in clips], [references[i] for i in clips]
            values[group] = metric.corpus(texts, their_references, target_lang)
    return values
