"""Healing an encoder by the states of another one: what the loss is, and what it moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sordino.config.schema import MatchSection
from sordino.errors import FamilyError
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.pruning import layers
from sordino.training.collate import Example, collate, silenced
from sordino.training.matching import relative_error
from sordino.training.trainer import mean_loss, train
from tests.tiny import fresh


@pytest.fixture
def matched(speech: SpeechModel, pairs: Sequence[Example], prompt: str) -> list[Example]:
    """The clips with the states of the whole encoder to match."""
    features = Features(speech, None)
    return [dataclasses.replace(pair, matched=features.encode(pair.clip, prompt)) for pair in pairs]


def test_an_encoder_matches_itself_and_no_other(speech: SpeechModel, matched: list[Example], prompt: str) -> None:
    own = fresh(speech)
    assert mean_loss(own, matched, 4, prompt) == pytest.approx(0, abs=1e-9)
    layers.prune(own, "encoder", [0])
    with torch.no_grad():
        batch = collate(own, matched[:2], prompt)
        states = torch.cat(own.states(batch.inputs))  # type: ignore[arg-type]
        target = torch.cat([pair.matched.states for pair in matched[:2] if pair.matched])
        by_row = ((states - target) ** 2).sum(1) / (target**2).sum(1)
        assert float(relative_error(own, batch)) == pytest.approx(float(by_row.sum()), rel=1e-5)
        assert float(relative_error(own, silenced(batch))) == 0
    assert mean_loss(own, matched[:2], 4, prompt) == pytest.approx(float(by_row.mean()), rel=1e-5)


def test_training_heals_an_encoder_without_a_layer(
    speech: SpeechModel, matched: list[Example], prompt: str, tmp_path: Path
) -> None:
    own = fresh(speech)
    layers.prune(own, "encoder", [0])
    before = mean_loss(own, matched, 4, prompt)
    for name, parameter in own.model.named_parameters():
        parameter.requires_grad_("audio_tower.layers" in name)
    section = MatchSection(batch_size=3, epochs=15, lr=3e-3)
    result = train(own, matched, section, prompt=prompt, seed=1, state=tmp_path, label="test", dev=matched)
    assert result.log[-1]["dev_loss"] == pytest.approx(mean_loss(own, matched, 3, prompt), rel=1e-5)
    assert mean_loss(own, matched, 4, prompt) < before / 2


def test_states_of_another_shape_are_refused(speech: SpeechModel, matched: list[Example], prompt: str) -> None:
    batch = collate(speech, matched[:1], prompt)
    shorter = dataclasses.replace(batch, matched=[batch.matched[0][:-1]])  # type: ignore[index]
    with pytest.raises(FamilyError, match="are to be matched"):
        relative_error(speech, shorter)
