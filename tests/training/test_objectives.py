"""Losses over the vocabulary, a chunk of positions at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sordino.measure.predict import LOGITS_BYTES
from sordino.models.answers import SpeechLM, Targets
from sordino.models.speech import SpeechModel
from sordino.training import objectives
from sordino.training.collate import Example, collate
from sordino.training.objectives import cross_entropy, summed_loss
from tests.tiny import fresh


def squared_surprise(logits: Tensor, targets: Targets) -> Tensor:
    """An objective that is not the cross-entropy."""
    return torch.log_softmax(logits, -1).gather(-1, targets.answers[:, None]).square().sum()


def gradients(speech: SpeechModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in speech.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", [cross_entropy, squared_surprise])
def test_chunks_of_positions_have_the_loss_and_the_gradients_of_all_at_once(
    speech: SpeechModel, pairs: list[Example], prompt: str, objective: objectives.Objective
) -> None:
    own = fresh(speech)
    model, batch = SpeechLM(own), collate(own, pairs, prompt)
    head = own.model.get_output_embeddings()
    made: list[int] = []
    head.register_forward_hook(lambda module, given, logits: made.append(len(logits)))
    row_bytes = 4 * head.weight.shape[0]
    results = []
    for most, rows in ((None, batch.tokens), (5 * row_bytes + 1, 5), (1, 1)):
        made.clear()
        own.model.zero_grad()
        loss = summed_loss(model, batch, objective, most)
        loss.backward()  # type: ignore[no-untyped-call]
        assert max(made) == rows
        assert sum(made) == batch.tokens * (1 if most is None else 2)  # the second time going back
        results.append((float(loss.detach()), gradients(own)))
    (whole, expected), *others = results
    assert batch.tokens % 5, "the last chunk is a shorter one"
    for loss, found in others:
        assert loss == pytest.approx(whole, rel=1e-6)
        assert found.keys() == expected.keys()
        for name in found:  # the same but for the order of the sums
            assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max()))


def test_a_batch_that_fits_is_one_chunk(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    """To the bit what it is without a limit, and nothing is computed twice."""
    batch = collate(speech, pairs, prompt)
    with torch.no_grad():
        fits = summed_loss(SpeechLM(speech), batch, cross_entropy, LOGITS_BYTES)
        assert torch.equal(fits, cross_entropy(SpeechLM(speech)(batch), batch.targets))
        assert float(summed_loss(SpeechLM(speech), batch, cross_entropy, 1)) == pytest.approx(float(fits), rel=1e-6)
