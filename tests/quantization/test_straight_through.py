"""Rounding in the forward pass: the values are the writer's to the bit, and the gradient passes whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sordino.errors import FamilyError
from sordino.models import nf4
from sordino.models.speech import SpeechModel
from sordino.quantization.integer import Scheme, quantize
from sordino.quantization.straight_through import IntegerRounding, attach_integers, attach_nf4, detach

HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_at_the_start_a_weight_is_what_rounding_to_nearest_stores(bits: int) -> None:
    weight, scheme = torch.randn(6, 128, generator=torch.Generator().manual_seed(bits)), Scheme(bits, 64)
    rounding, stored = IntegerRounding(weight, scheme), quantize(weight, scheme)
    assert torch.equal(rounding.scale, stored.scale)
    error = (rounding(weight) - weight).norm()
    assert error <= (stored.dequantized() - weight).norm()  # nearest to the scale as it is stored


def test_the_gradient_passes_and_the_scale_stays() -> None:
    linear = nn.Linear(64, 4, bias=False)
    rounding = IntegerRounding(linear.weight, Scheme(2, 64))
    scale = rounding.scale.clone()
    parametrize.register_parametrization(linear, "weight", rounding, unsafe=True)
    upstream = torch.randn(4, 64)
    (linear.weight * upstream).sum().backward()
    trained = linear.parametrizations.weight.original
    assert torch.equal(trained.grad, upstream)
    with torch.no_grad():
        trained.add_(0.3)
    assert torch.equal(rounding.scale, scale)
    assert torch.equal(linear.weight, rounding.codes(trained).dequantized())


def test_what_is_rounded_already_is_found_again(speech: SpeechModel) -> None:
    """The integers behind a rounded weight are exact also from its values in bfloat16."""
    weight = speech.model.get_output_embeddings().weight
    rounding = IntegerRounding(weight, Scheme(4, 32))
    stored = rounding.codes(weight)
    assert torch.equal(rounding.codes(stored.dequantized(torch.bfloat16)).codes, stored.codes)


def test_an_embedding_is_rounded_once_and_a_head_in_every_pass(speech: SpeechModel) -> None:
    embedding, head = speech.model.get_input_embeddings(), speech.model.get_output_embeddings()
    before = {name: module.weight.detach().clone() for name, module in ((EMBEDDING, embedding), (HEAD, head))}
    roundings = attach_integers(speech, {EMBEDDING: 8, HEAD: 2})
    assert set(roundings) == {EMBEDDING, HEAD}
    assert not embedding.weight.requires_grad
    assert torch.equal(embedding.weight, roundings[EMBEDDING].codes(before[EMBEDDING]).dequantized())
    assert torch.equal(head.weight, roundings[HEAD].codes(before[HEAD]).dequantized())
    assert not torch.equal(head.weight, before[HEAD])
    detach(speech)
    assert torch.equal(head.weight, before[HEAD])


def test_nf4_is_what_is_read_back(speech: SpeechModel) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    linears = nf4.linears(speech.family, speech.model)
    before = {name: module.weight.detach().clone() for name, module in linears.items()}
    attach_nf4(speech)
    for name, module in linears.items():
        kept = bitsandbytes.nn.Params4bit(
            before[name].bfloat16(), requires_grad=False, quant_type="nf4", compress_statistics=True, blocksize=64
        )._quantize("cpu")
        read = bitsandbytes.functional.dequantize_4bit(kept.data, kept.quant_state).float()
        assert torch.equal(module.weight.bfloat16().float(), read), name
    (module.weight.sum()).backward()
    original = module.parametrizations.weight.original
    assert torch.equal(original.grad, torch.ones_like(original))


def test_a_weight_that_no_layer_computes_with_is_refused(speech: SpeechModel) -> None:
    with pytest.raises(FamilyError, match=r"audio_tower\.conv1\.weight .* cannot be trained through rounding"):
        attach_integers(speech, {HEAD: 4, "audio_tower.conv1.weight": 4})
