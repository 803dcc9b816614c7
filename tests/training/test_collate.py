"""Batches: labels by position, left padding, an order that depends on the seed alone."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections import Counter

import pytest
import torch

from sordino.errors import DataError
from sordino.models.answers import IGNORED, AnswerBatch
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.runtime.executor import ahead
from sordino.training.collate import Example, collate, epoch_batches, silenced
from tests.tiny import answer_loss, fresh


def test_labels_are_the_answer_tokens_alone(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    batch = collate(speech, pairs, prompt)
    assert len({len(e.answer) for e in pairs}) > 3
    for row, example in enumerate(pairs):
        n = len(example.answer)
        assert batch.labels[row, -n:].tolist() == example.answer
        assert set(batch.labels[row, :-n].tolist()) == {IGNORED}
        assert batch.ids[row, -n:].tolist() == example.answer
        first = int(batch.mask[row].argmax())  # padding is on the left, and only there
        assert batch.mask[row, first:].all()
        assert not batch.mask[row, :first].any()
        assert set(batch.ids[row, :first].tolist()) <= {speech.pad_id()}
        assert (
            batch.labels[row, batch.ids[row] == speech.family.audio.placeholder(speech.model.config)].eq(IGNORED).all()
        )


def test_the_loss_is_the_models_own(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    for chosen in (pairs[:1], pairs):
        batch = collate(speech, chosen, prompt)
        assert batch.inputs is not None
        with torch.no_grad():
            total, tokens = answer_loss(speech, batch)
            mel, frames = batch.inputs.audio
            stock = speech.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                input_features=mel,
                feature_attention_mask=(torch.arange(mel.shape[-1])[None] < frames[:, None]).long(),
                labels=batch.labels,
            )
        assert tokens == sum(len(e.answer) for e in chosen)
        assert float(total) / tokens == pytest.approx(float(stock.loss), abs=2e-5)


def test_features_heard_beforehand_change_nothing(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    features = Features(speech, None)
    encoded = [dataclasses.replace(e, encoded=features.encode(e.clip, prompt)) for e in pairs]
    with torch.no_grad():
        one, _ = answer_loss(speech, collate(speech, pairs, prompt))
        other, _ = answer_loss(speech, collate(speech, encoded, prompt))
    assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_only_answer_tokens_carry_a_gradient(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    """The head's gradient is that of the answer positions alone, whatever stands on the masked ones."""
    own = fresh(speech)
    batch = collate(own, pairs[:3], prompt)
    logits: list[torch.Tensor] = []
    own.model.get_output_embeddings().register_forward_hook(lambda *seen: logits.append(seen[2]))
    loss, tokens = answer_loss(own, batch)
    assert logits[0].shape[0] == tokens  # no logits are made elsewhere
    first = torch.autograd.grad(loss, own.model.get_output_embeddings().weight)[0]

    changed = batch.ids.clone()  # what the masked positions of a label tensor hold cannot matter: there is none
    labels = torch.where(batch.labels == IGNORED, IGNORED, changed)
    again, _ = answer_loss(own, dataclasses.replace(batch, labels=labels))
    assert torch.equal(first, torch.autograd.grad(again, own.model.get_output_embeddings().weight)[0])

    answers = dataclasses.replace(batch, labels=batch.labels.clone())
    answers.labels[0, -1] = 5
    other, _ = answer_loss(own, answers)
    assert not torch.equal(first, torch.autograd.grad(other, own.model.get_output_embeddings().weight)[0])


def test_a_prompt_without_its_audio_is_refused(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    batch = collate(speech, pairs[:2], prompt)
    with pytest.raises(ValueError, match="audio placeholders"):
        answer_loss(speech, dataclasses.replace(batch, ids=torch.zeros_like(batch.ids)))


@pytest.mark.parametrize(("count", "size"), [(1, 4), (7, 3), (64, 4), (130, 16)])
def test_an_epoch_takes_every_index_once(count: int, size: int) -> None:
    lengths = [float((i * 7919) % 31) for i in range(count)]
    for epoch in range(3):
        found = epoch_batches(lengths, size, epoch, seed=1)
        assert Counter(i for batch in found for i in batch) == Counter(range(count))
        assert len(found) == -(-count // size)
        assert sum(len(batch) < size for batch in found) <= 1
        assert found == epoch_batches(lengths, size, epoch, seed=1)


def test_epochs_and_seeds_differ() -> None:
    lengths = [float(i) for i in range(40)]
    orders = [epoch_batches(lengths, 4, epoch, seed) for epoch in (0, 1) for seed in (0, 1)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_batches_are_of_similar_length() -> None:
    lengths = [float((i * 7919) % 997) for i in range(512)]
    found = epoch_batches(lengths, 8, 0, 0)
    spread = sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in found) / len(found)
    assert spread < 997 / 4


def test_batches_are_made_a_few_ahead_and_let_go(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    """Whatever the number of clips: two ahead, and the one in use."""
    batches: list[weakref.ref[AnswerBatch]] = []
    most, made, ready = 0, [], threading.Semaphore(0)

    def make(example: Example) -> AnswerBatch:
        nonlocal most
        batch = collate(speech, [example], prompt)
        batches.append(weakref.ref(batch))
        made.append(example.clip.id)
        most = max(most, sum(one() is not None for one in batches))
        ready.release()
        return batch

    examples = pairs * 5
    used = taken = 0
    for batch in ahead(make, examples, 2, threads=1):
        assert batch.tokens == len(examples[used].answer)
        used += 1
        for _ in range(min(used + 2, len(examples)) - taken):  # until the thread has nothing to do
            ready.acquire()
            taken += 1
        del batch
    assert used == len(examples)
    assert made == [example.clip.id for example in examples]
    assert most == 3


def test_what_goes_wrong_ahead_is_raised_in_its_place() -> None:
    def make(item: int) -> int:
        if item == 3:
            raise DataError("clip 3 is gone.")
        return item

    taken = []
    with pytest.raises(DataError, match="clip 3 is gone"):
        for item in ahead(make, range(10), 2, threads=1):
            taken.append(item)  # those before the error count
    assert taken == [0, 1, 2]


def test_who_stops_early_leaves_no_thread_behind() -> None:
    made: list[int] = []
    items = ahead(lambda item: made.append(item) or item, range(1000), 2, threads=1)
    assert next(items) == 0
    items.close()
    assert len(made) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_of_a_partly_silenced_batch_the_first_clips_count(
    speech: SpeechModel, pairs: list[Example], prompt: str
) -> None:
    loss, tokens = answer_loss(speech, silenced(collate(speech, pairs[:3], prompt), 2))
    two, expected = answer_loss(speech, collate(speech, pairs[:2], prompt))
    assert tokens == expected
    assert loss.item() == pytest.approx(two.item(), rel=1e-5)


def test_a_silenced_batch_runs_and_moves_nothing(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    """As a process without clips runs it: every weight has a gradient, of zero."""
    own = fresh(speech)
    loss, tokens = answer_loss(own, silenced(collate(own, pairs[:1], prompt)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert tokens == 0
    assert float(loss.detach()) == 0
    reached = {name for name, p in own.model.named_parameters() if p.grad is not None}
    counted = fresh(speech)
    answer_loss(counted, collate(counted, pairs[:1], prompt))[0].backward()  # type: ignore[no-untyped-call]
    assert reached == {name for name, p in counted.model.named_parameters() if p.grad is not None}
    assert not any(p.grad.any() for p in own.model.parameters() if p.grad is not None)
