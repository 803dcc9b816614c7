"""Scoring by workers: the trials of one process, by every criterion and however many workers; no weights at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sordino.data.clip import Clip
from sordino.models import stored
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.pruning import search
from sordino.pruning.layer import Layer
from sordino.pruning.lots import Key
from sordino.pruning.scoring import ClipScorer, ScoringOptions, TargetLanguage
from sordino.pruning.scoring_worker import ScoringWorker
from tests import tiny
from tests.data import sounds
from tests.in_process import InProcess

SECONDS = (0.3, 1.1, 0.7, 1.9, 0.2, 1.4)
REFERENCES = ("ein Haus", "der Zug", "zwei Karten", "es ist acht", "bitte", "heute Abend")


@pytest.fixture(scope="module")
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return pico("qwen2_audio")


@pytest.fixture(scope="module")
def languages(speech: SpeechModel, tmp_path_factory: pytest.TempPathFactory) -> list[TargetLanguage]:
    folder = tmp_path_factory.mktemp("clips")
    clips = []
    for i, seconds in enumerate(SECONDS):
        sounds.save(folder / f"{i}.flac", tiny.clip(i, seconds))
        clips.append(Clip(str(i), str(folder / f"{i}.flac"), None, "en", "de"))
    prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
    encoded = Features(speech, folder / "cache").encode_all(clips, prompt)
    return [TargetLanguage("de", encoded, REFERENCES, [speech.answer_ids(text) for text in REFERENCES])]


def options(criterion: str, racing: bool = False) -> ScoringOptions:
    return ScoringOptions(criterion, 6, 2**27, racing=racing)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("criterion", ["chrf", "loss", "kl", "influence", "angular"])
def test_trials_are_those_of_one_process(
    speech: SpeechModel,
    model_dir: Path,
    languages: list[TargetLanguage],
    criterion: str,
    workers: int,
) -> None:
    of_clips = Features(speech, None)
    alone = ClipScorer(speech, languages, options(criterion), lambda e: of_clips.encode(e.clip, e.prompt))
    rows: list[tuple[Key, list[int]]] = []
    hollow = stored.without_weights(str(model_dir), torch.float32)
    assert hollow.device.type == "meta"
    executor = InProcess(ScoringWorker(speech, Path("unused")), workers)
    steps = 0

    def advance(count: int) -> None:
        nonlocal steps
        steps += count

    by_workers = ClipScorer(
        hollow, languages, options(criterion), lambda e: e, remember=rows.extend, advance=advance, executor=executor
    )
    scopes = ("decoder",) if criterion in ("influence", "angular") else ("decoder", "encoder")
    pool = [layer for scope in scopes for layer in search.candidates(speech, scope, 0, 0)]
    removed = [Layer("decoder", 1)] if len(scopes) == 1 else [Layer("decoder", 1), Layer("encoder", 0)]
    remaining = [layer for layer in pool if layer not in removed]
    clips = len(SECONDS)
    assert list(by_workers.trials(3, removed, remaining, clips)) == list(alone.trials(3, removed, remaining, clips))
    assert steps == len(remaining) * clips
    if criterion == "chrf":
        assert dict(rows) == by_workers.translations == alone.translations
        assert list(by_workers.translations) != [key for key, _ in rows]  # kept in one order, told as they come


def test_a_race_by_workers_removes_the_same_layers(
    speech: SpeechModel, model_dir: Path, languages: list[TargetLanguage]
) -> None:
    hollow = stored.without_weights(str(model_dir), torch.float32)
    executor = InProcess(ScoringWorker(speech, Path("unused")), 3)
    pool = search.candidates(speech, "decoder", 0, 0)
    alone = ClipScorer(speech, languages, options("chrf", True), lambda e: e)
    by_workers = ClipScorer(hollow, languages, options("chrf", True), lambda e: e, executor=executor)
    one = search.search(pool, 2, alone, (), lambda _: None, racing=True)
    assert search.search(pool, 2, by_workers, (), lambda _: None, racing=True) == one


@pytest.mark.parametrize("family", ["qwen2_audio", "voxtral", "granite_speech", "gemma4_unified"])
def test_a_model_without_weights_says_what_the_model_says(
    family: str, pico: Callable[[str], SpeechModel], pico_dir: Callable[[str], Path]
) -> None:
    hollow, whole = stored.without_weights(str(pico_dir(family)), torch.float32), pico(family)

    def told(speech: SpeechModel) -> list[object]:
        counts = [speech.layer_count("decoder"), speech.layer_count("encoder")]
        ids = [speech.stop_ids(), speech.pad_id(), speech.suppressed_ids(), speech.answer_ids("ein Haus")]
        return [*counts, *ids, speech.dtype, speech.family.chat.render(speech.processor, tiny.QUESTION)]

    assert told(hollow) == told(whole)
