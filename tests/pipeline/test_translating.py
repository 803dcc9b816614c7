"""Translating a split: which clips are timed, and that the others' audio is encoded once for all systems."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.config.schema import TranslateSection
from sordino.data import corpora
from sordino.measure.speed import Meter
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.pipeline.translating import metered, timed_batches
from tests.stages.runs import Made

PROMPT = "<|audio_bos|><|AUDIO|><|audio_eos|>Translate."


@pytest.mark.parametrize(
    ("timed", "expected"),
    [
        (None, {0, 1, 2, 3, 4, 5}),
        (1, {3}),
        (10, {3}),
        (11, {1, 4}),
        (30, {1, 3, 5}),
        (60, {0, 1, 2, 3, 4, 5}),
        (99, {*range(6)}),
    ],
)
def test_timed_batches_lie_evenly_over_the_lengths(timed: int | None, expected: set[int]) -> None:
    assert timed_batches(6, TranslateSection(batch_size=10, timed=timed)) == expected


def test_what_is_not_timed_is_encoded_once_and_translated_the_same(
    speech: SpeechModel, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = corpora.load("folder", made.corpus, "en", "de").clips[:6]
    encoded: list[str] = []
    encode = Features.encode_waveform

    def counted(self: Features, clip: object, *rest: object) -> object:
        encoded.append(clip.id)  # type: ignore[attr-defined]
        return encode(self, clip, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Features, "encode_waveform", counted)

    def texts(timed: int | None) -> tuple[list[str], Meter, list[str]]:
        encoded.clear()
        section, meter = TranslateSection(batch_size=2, timed=timed, max_new_tokens=5), Meter()
        hypotheses = metered(speech, clips, PROMPT, section, meter, "system", tmp_path)
        return [h.text for h in hypotheses], meter, sorted(encoded)

    everything, whole, fresh = texts(None)
    assert len({*everything}) > 1
    assert fresh == sorted(clip.id for clip in clips)
    assert not list(tmp_path.iterdir()), "what is timed is never cached"
    first, meter, fresh = texts(2)
    assert first == everything
    assert fresh == sorted(clip.id for clip in clips)
    assert 0 < meter.audio_seconds < whole.audio_seconds / 2
    assert meter.tokens < whole.tokens
    second, _, fresh = texts(2)
    assert second == everything
    assert len(fresh) == 2, "of the timed batch alone"
