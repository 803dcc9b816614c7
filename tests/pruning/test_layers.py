"""Surgery beyond what each family's contract asks: repeated, nested, and on the configs that modules hold."""

from __future__ import annotations

import copy

from sordino.models.speech import SpeechModel
from sordino.pruning import layers
from tests import tiny


def test_order_of_the_choice_does_not_matter(speech: SpeechModel) -> None:
    before = list(speech.layers("decoder"))
    layers.prune(speech, "decoder", [3, 1])
    assert list(speech.layers("decoder")) == [before[1], before[3]]


def test_every_copy_of_the_configuration_is_renewed(speech: SpeechModel) -> None:
    own = speech.part("decoder").config
    attention = speech.layers("decoder")[0].self_attn
    attention.config = copy.deepcopy(own)  # versions of transformers differ in what modules share
    layers.prune(speech, "decoder", [0, 2])
    held = {id(m.config): m.config for m in speech.model.modules() if hasattr(m, "config")}
    counted = [c for c in held.values() if c.model_type == speech.model.config.text_config.model_type]
    assert len(counted) == 2
    assert {c.num_hidden_layers for c in counted} == {2}
    assert {len(c.layer_types) for c in counted} == {2}
    assert speech.model.config.text_config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in speech.layers("decoder")] == [0, 1]
    assert speech.model.config.audio_config.encoder_layers == tiny.ENCODER_LAYERS


def test_a_view_inside_a_view_counts_in_its_numbering(speech: SpeechModel) -> None:
    encoded = tiny.ask(speech, [tiny.clip(1, 0.8)])
    with layers.only(speech, "decoder", [0, 3]):
        expected = tiny.logits(speech, encoded)
    with layers.only(speech, "decoder", [0, 2, 3]):
        with layers.only(speech, "decoder", [0, 2]):
            inner = tiny.logits(speech, encoded)
        assert len(speech.layers("decoder")) == 3
    assert len(speech.layers("decoder")) == tiny.DECODER_LAYERS
    assert inner.equal(expected)


def test_pruning_one_at_a_time_equals_pruning_at_once(speech: SpeechModel) -> None:
    encoded, other = tiny.ask(speech, [tiny.clip(1, 0.8)]), tiny.fresh(speech)
    layers.prune(speech, "decoder", [0, 1, 3])
    layers.prune(speech, "decoder", [0, 2])
    layers.prune(other, "decoder", [0, 3])
    assert tiny.logits(speech, encoded).equal(tiny.logits(other, encoded))
    assert tiny.greedy(speech, encoded, 5)[0].equal(tiny.greedy(other, encoded, 5)[0])
