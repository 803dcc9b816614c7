"""Costs of rounded parts and dropped layers by definition, weights put back bit for bit, interrupted measuring."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sordino.errors import FamilyError
from sordino.layouts import tables
from sordino.models import shapes
from sordino.models.features import EncodedClip, Features
from sordino.models.registry import FAMILIES
from sordino.models.speech import SpeechModel
from sordino.pruning.search import Layer, without
from sordino.quantization import sensitivity
from sordino.quantization.integer import Scheme, quantize
from sordino.quantization.sensitivity import Change, Cost, Sensitivity, part_of_weight
from tests import tiny
from tests.pruning.test_scoring import REFERENCES, SECONDS, task

CLIPS = 3
MEMORY = 2**26


def again(speech: SpeechModel) -> Callable[[EncodedClip], EncodedClip]:
    features = Features(speech, None)
    return lambda h: features.encode_waveform(h.clip, tiny.clip(int(h.clip.id), SECONDS[int(h.clip.id)]), h.prompt)


def asked(speech: SpeechModel, measure: str) -> Sensitivity:
    whole = task(speech)
    return Sensitivity(speech, whole.encoded[:CLIPS], whole.answers[:CLIPS], measure, MEMORY, again(speech))


def logits(speech: SpeechModel) -> list[torch.Tensor]:
    """Of every clip's reference, by the stock forward pass."""
    found = []
    for i in range(CLIPS):
        answer = speech.answer_ids(REFERENCES[i])
        encoded = tiny.ask(speech, [tiny.clip(i, SECONDS[i])])
        with torch.no_grad():
            out = speech.model(**tiny.embedded(speech, encoded, [answer[:-1]]), use_cache=False).logits
        found.append(out[0, -len(answer) :].float())
    return found


def by_definition(measure: str, after: list[torch.Tensor], before: list[torch.Tensor], speech: SpeechModel) -> float:
    answers = [torch.tensor(speech.answer_ids(text)) for text in REFERENCES[:CLIPS]]
    total = 0.0
    for a, b, answer in zip(after, before, answers, strict=True):
        p, q = b.log_softmax(-1), a.log_softmax(-1)
        rows = torch.arange(len(answer))
        total += float((p.exp() * (p - q)).sum() if measure == "kl" else (p - q)[rows, answer].sum())
    return total / sum(map(len, answers))


@pytest.mark.parametrize("measure", ["kl", "loss"])
@pytest.mark.parametrize(
    "part", ["encoder.1", "projector", "embedding", "decoder.2.attention", "decoder.0.mlp", "head"]
)
def test_costs_of_rounding(speech: SpeechModel, part: str, measure: str) -> None:
    before = logits(speech)
    changed = tiny.fresh(speech)
    for name, module in changed.model.named_modules():
        if hasattr(module, "weight") and part_of_weight(f"{name}.weight") == part and module.weight.ndim == 2:
            scheme = Scheme(3, tables.group_for(module.weight.shape[1]))
            module.weight.data = quantize(module.weight.data, scheme).dequantized()
    expected = by_definition(measure, logits(changed), before, speech)
    found = asked(speech, measure).cost(Change(part, 3))
    assert found.value == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert abs(expected) > 1e-4


@pytest.mark.parametrize("measure", ["kl", "loss"])
def test_costs_of_dropping(speech: SpeechModel, measure: str) -> None:
    order = [Layer("decoder", 2), Layer("decoder", 0)]
    before = logits(speech)
    asker = asked(speech, measure)
    for count in (1, 2):
        with without(speech, order[:count]):
            after = logits(speech)
        expected = by_definition(measure, after, before, speech)
        assert asker.cost(Change(dropped=count), order).value == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_by_live_and_by_stored_names(pico: Callable[[str], SpeechModel], family: str) -> None:
    speech = pico(family)
    live = sensitivity.weights(speech)
    stored: dict[str, list[tuple[int, ...]]] = {}
    for tensor in shapes.model(speech.model.config.to_dict()).tensors:
        part = part_of_weight(tensor.name) if tensor.kind != "other" else None
        if part:
            stored.setdefault(part, []).append(tensor.shape)
    assert {k: sorted(tuple(w.shape) for w in v) for k, v in live.items()} == {k: sorted(v) for k, v in stored.items()}
    layers = [f"decoder.{i}.{half}" for i in range(tiny.DECODER_LAYERS) for half in ("attention", "mlp")]
    encoder = [f"encoder.{i}" for i in range(speech.layer_count("encoder"))]
    assert set(live) == {*layers, *encoder, "projector", "embedding", *(["head"] if not tiny.is_tied(speech) else [])}
    matrices = [t for t in shapes.model(speech.model.config.to_dict()).tensors if t.kind != "other"]
    heard = [t for t in matrices if speech.family.tensors.runs(speech.family.tensors.live_name(t.name))]
    outside = [t for t in heard if part_of_weight(t.name) is None]
    assert all(t.part in ("audio_encoder", "decoder") and ".layers." not in t.name for t in outside)


def test_the_weights_are_put_back(speech: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    speech.model.to(torch.bfloat16)
    before = copy.deepcopy(speech.model.state_dict())
    asker = asked(speech, "kl")
    for part in asker.weights:
        asker.cost(Change(part, 2))
    asker.cost(Change(dropped=1), [Layer("decoder", 1)])

    def fails(_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(asker, "_value", fails)
    with pytest.raises(KeyboardInterrupt):
        asker.cost(Change("head", 2))
    after = speech.model.state_dict()
    assert all(torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)) for name in before)


def test_what_is_known_is_not_measured_again(speech: SpeechModel) -> None:
    changes = [Change("head", 8), Change("head", 2), Change(dropped=1)]
    order = [Layer("decoder", 1)]
    asker = asked(speech, "kl")
    straight = sensitivity.measure(asker, changes, order, {}, lambda _: None)
    lines: list[dict[str, Any]] = [cost.to_json() for cost in list(straight.values())[:2]]
    known = {cost.change: cost for cost in map(Cost.from_json, lines)}
    again: list[Cost] = []
    advanced: list[int] = []
    resumed = sensitivity.measure(asker, changes, order, known, again.append, advanced.append)
    assert resumed == straight
    assert [cost.change for cost in again] == [Change(dropped=1)]
    assert advanced == [1]
    assert straight[changes[0]].value < straight[changes[1]].value


def test_a_model_that_breaks_is_refused_by_name(speech: SpeechModel) -> None:
    asker = asked(speech, "loss")
    asker.unchanged, asker.encoded = 0.0, list(asker.encoded)
    with torch.no_grad():
        speech.layers("decoder")[0].mlp.gate_proj.bias = None  # type: ignore[union-attr]
        speech.model.get_input_embeddings().weight.fill_(1e30)
        speech.part("decoder").norm.weight.fill_(float("inf"))  # type: ignore[union-attr]
    with pytest.raises(FamilyError, match="projector in 8 bits the model computes"):
        asker.cost(Change("projector", 8))
