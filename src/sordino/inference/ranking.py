"""Layers of a loaded model ranked by clips at hand: what the stage `rank` does, without a run."""

from __future__ import annotations

from collections.abc import Sequence

from sordino.config.schema import RankSection, Recipe
from sordino.data.clip import Clip
from sordino.errors import DataError, FamilyError, RecipeError, UsageError
from sordino.inference.model import Model
from sordino.models.answers import answers_of
from sordino.pipeline.ranking import ranking_of, search_on
from sordino.pruning import criteria
from sordino.pruning.ranking import Ranking
from sordino.pruning.scoring import TargetLanguage


def rank(model: Model, clips: Sequence[Clip], section: RankSection, seed: int) -> Ranking:
    """The model is as before. Raises DataError, FamilyError, RecipeError, UsageError."""
    speech = model.speech
    if speech.external_decoder:
        raise FamilyError(
            f"{speech.path} holds a decoder for llama.cpp, which translates and does nothing else.",
            "Rank the 16-bit model that it was made from.",
        )
    target = _target(clips)
    criterion = Recipe(target=target, rank=section).criterion
    names = (*criteria.TRANSLATION, *criteria.FORCED, *criteria.STATES)
    if criterion not in names:
        raise RecipeError(f"there is no criterion '{criterion}'.", f"There are: {', '.join(names)}.")
    task = _task(model, clips, target)
    searched = search_on(speech, [task], section, criterion, seed)
    return ranking_of(speech, section, [removal.layer for removal in searched.removals], criterion, searched)


def _target(clips: Sequence[Clip]) -> str:
    """The language of the references. Raises DataError where one is missing, UsageError for none or several."""
    missing = [clip.id for clip in clips if not (clip.target_text or "").strip()]
    if missing:
        raise DataError(f"{len(missing)} clips have no target_text, {missing[0]} among them.", "Leave them out.")
    languages = sorted({clip.target_lang for clip in clips})
    if len(languages) != 1:
        problem = f"clips of {', '.join(languages)} cannot be ranked together." if languages else "there are no clips."
        raise UsageError(problem, "Give clips of one target language.")
    return languages[0]


def _task(model: Model, clips: Sequence[Clip], target: str) -> TargetLanguage:
    """The clips, encoded, with their references. The prompt names the clips' languages."""
    prompt = model.prompt(clips[0].source_lang, target)
    encoded = model.features.encode_all(clips, prompt)
    references = [clip.target_text or "" for clip in clips]
    answers = answers_of(model.speech, clips, model.card.prompt.style)
    return TargetLanguage(target, encoded, references, answers)
