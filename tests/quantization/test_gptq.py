"""GPTQ: less output error than rounding to nearest, on inputs of the real path; layer by layer; resumable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sordino.data.clip import Clip
from sordino.errors import FamilyError
from sordino.models import registry
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.quantization import gptq, integer
from sordino.quantization.integer import Rounded, Scheme, quantize
from tests import tiny

SCHEME = Scheme(3, 32)


def inputs(tokens: int, columns: int, seed: int) -> Tensor:
    """Correlated columns of very different size, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    sizes = torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=generator)]
    return torch.randn(tokens, columns, generator=generator) @ (mixing + torch.eye(columns)) * sizes


def hessian(x: Tensor) -> Tensor:
    found = gptq.Hessian()
    for part in x.split(50):
        found.add(part)
    return found.mean


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_outputs_change_less_than_with_rounding_to_nearest(bits: int) -> None:
    weight = 0.05 * torch.randn(48, 192, generator=torch.Generator().manual_seed(1))
    x, other = inputs(400, 192, 2), inputs(400, 192, 2)[200:]
    scheme = Scheme(bits, 64)

    def error(rounded: Rounded, x: Tensor) -> float:
        return float((x @ (rounded.dequantized() - weight).T).square().sum())

    nearest, better = quantize(weight, scheme), gptq.round_columns(weight, hessian(x[:200]), scheme)
    assert error(better, x[:200]) < 0.6 * error(nearest, x[:200])
    assert error(better, other) < 0.9 * error(nearest, other)  # and for inputs it has not seen


def test_with_uncorrelated_inputs_it_rounds_to_nearest() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    found = gptq.round_columns(weight, torch.eye(64), SCHEME)
    nearest = integer.nearest(weight.view(8, 2, 32), found.scale, SCHEME)
    assert torch.equal(found.codes, nearest.flatten(-2))


def test_columns_without_inputs_and_too_few_tokens() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    x = inputs(20, 64, 5)
    x[:, 10:20] = 0
    found = gptq.round_columns(weight, hessian(x), SCHEME).dequantized()
    assert bool(torch.isfinite(found).all())
    assert (x @ (found - weight).T).norm() < (x @ (quantize(weight, SCHEME).dequantized() - weight).T).norm()
    nothing = gptq.round_columns(weight, torch.zeros(64, 64), SCHEME).dequantized()
    assert bool(torch.isfinite(nothing).all())


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs that are not finite"):
        gptq.round_columns(torch.ones(4, 32), torch.full((32, 32), float("nan")), SCHEME)


def calibration(speech: SpeechModel) -> gptq.Calibration:
    prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
    features = Features(speech, None)
    clips = [Clip(str(i), f"{i}.wav", None, "en", "de") for i in range(6)]
    encoded = [features.encode_waveform(clip, tiny.clip(i, 0.5 + 0.2 * i), prompt) for i, clip in enumerate(clips)]
    answers = [speech.answer_ids(f"Antwort {i} " * (i + 1)) for i in range(6)]
    return gptq.Calibration(speech, encoded, answers, memory=2**20)


def decoder_linears(speech: SpeechModel) -> dict[str, Scheme]:
    prefix = speech.family.stacks["decoder"].path
    names = [name for name, module in speech.model.named_modules() if isinstance(module, nn.Linear)]
    return {name: Scheme(3, 32) for name in names if name.startswith(f"{prefix}.")}


@pytest.fixture(scope="module", params=[name for name in sorted(registry.FAMILIES) if registry.get(name).decoder.line])
def rounded(request: pytest.FixtureRequest, pico: Callable[[str], SpeechModel]) -> tuple[SpeechModel, dict[int, dict]]:
    speech = tiny.fresh(pico(request.param))
    return speech, dict(gptq.round_decoder(calibration(speech), decoder_linears(speech)))


def test_the_decoder_is_rounded_in_place_and_answers_change_less(
    rounded: tuple[SpeechModel, dict[int, dict]], pico: Callable[[str], SpeechModel]
) -> None:
    speech, found = rounded
    original = pico(speech.family.model_type)
    nearest = tiny.fresh(original)
    wanted = decoder_linears(original)
    assert {name for layer in found.values() for name in layer} == set(wanted)
    modules = dict(nearest.model.named_modules())
    with torch.no_grad():
        for name, scheme in wanted.items():
            modules[name].weight.copy_(quantize(modules[name].weight, scheme).dequantized(torch.bfloat16))
    for layer in found.values():
        for name, weight in layer.items():
            module = speech.model.get_submodule(name)
            assert torch.equal(module.weight, weight.dequantized(torch.bfloat16).float())

    def states(model: SpeechModel) -> list[Tensor]:
        """What the last layer makes of the calibration clips, of valid tokens."""
        case = calibration(model)
        case.start()
        for index in range(model.layer_count("decoder")):
            outs = [out for _, out, _ in case.run(index)]
            case.hidden = outs
        return [out[batch.valid] for out, batch in zip(case.hidden, case.batches, strict=True)]

    def distance(model: SpeechModel) -> float:
        pairs = zip(states(model), states(original), strict=True)
        return sum(float((one - other).square().sum()) for one, other in pairs)

    assert distance(speech) < 0.8 * distance(nearest)


def test_an_interrupted_run_goes_on_to_the_same_weights(
    rounded: tuple[SpeechModel, dict[int, dict]], pico: Callable[[str], SpeechModel]
) -> None:
    speech, found = rounded
    again = tiny.fresh(pico(speech.family.model_type))
    known = {index: found[index] for index in (0, 1)}
    resumed = dict(gptq.round_decoder(calibration(again), decoder_linears(again), known.get))
    for index, layer in found.items():
        for name, weight in layer.items():
            assert torch.equal(resumed[index][name].codes, weight.codes)
            assert torch.equal(resumed[index][name].scale, weight.scale)


def test_modules_with_the_same_inputs_share_a_hessian(pico: Callable[[str], SpeechModel]) -> None:
    speech = pico("qwen2_audio")
    case = calibration(speech)
    case.start()
    found = gptq.hessians(case, speech.layers("decoder")[0], 0)
    assert len({id(h) for h in found.values()}) == 4
    assert found["self_attn.q_proj"] is found["self_attn.v_proj"]
    assert found["mlp.gate_proj"] is found["mlp.up_proj"] is not found["mlp.down_proj"]
    tokens = sum(len(h.ids) + len(a) - 1 for h, a in zip(case.encoded, case.answers, strict=True))
    assert found["mlp.down_proj"].tokens == tokens  # no padding


def test_weights_that_are_not_finite_are_refused_by_name(pico: Callable[[str], SpeechModel]) -> None:
    speech = tiny.fresh(pico("qwen2_audio"))
    with torch.no_grad():
        speech.layers("decoder")[1].mlp.up_proj.weight[3, 4] = float("inf")
    with pytest.raises(FamilyError, match=r"layers\.1\..*not finite"):
        dict(gptq.round_decoder(calibration(speech), decoder_linears(speech)))
