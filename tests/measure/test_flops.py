"""Operations of a training, by hand."""

from __future__ import annotations

import pytest

from sordino.measure import flops
from sordino.measure.predict import Batch
from sordino.models import shapes
from tests.models.test_shapes import QWEN2_AUDIO_7B

BIG = shapes.model(QWEN2_AUDIO_7B)


def test_a_clip_of_the_7b_model() -> None:
    tokens, states, answer = (BATCH := Batch(1, 10.0)).tokens(BIG), BATCH.states(BIG), BATCH.answer()
    assert (tokens, states, answer) == (250 + 40 + 40, 500, 40)
    sizes = {part: shapes.count(t for t in BIG.tensors if t.part == part) for part in {t.part for t in BIG.tensors}}
    passed = 330 * (sizes["decoder"] + sizes["projector"]) + 40 * sizes["head"]
    assert flops.of_clip(BIG, 10.0, frozen=("encoder",)) == 6 * passed
    assert flops.of_clip(BIG, 10.0) == 6 * (passed + 500 * sizes["audio_encoder"])
    assert flops.of_clip(BIG, 10.0, frozen=("encoder",), checkpointing=True) == 8 * passed
    assert flops.of_clip(BIG, 10.0, frozen=("encoder",), adapter=True) == 4 * passed


def test_hours() -> None:
    assert flops.hours(3.6e18, 1e15, 1) == pytest.approx(1)
    assert flops.hours(3.6e18, 2.5e14, 2) == pytest.approx(2)
