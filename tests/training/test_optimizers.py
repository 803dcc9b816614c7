"""AdamW with float32, bfloat16 and 8-bit states: values, rounding, and what a resume point needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sordino.config.schema import TrainSection
from sordino.models.speech import SpeechModel
from sordino.training import optimizers, resume
from sordino.training.collate import Example
from sordino.training.optimizers import make_optimizer, restore, round_stochastically, state_of
from tests.tiny import fresh
from tests.training.test_trainer import SECTION, Killed, differing, fit, killed_after, weights

SMALL_LR = dataclasses.replace(SECTION, lr=1e-5)


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    """A matrix of typical size, which 8-bit states have blocks of, and a vector too small for them."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(96, 130, generator=generator) * 0.02
    return [nn.Parameter(matrix.to(dtype)), nn.Parameter(torch.ones(10, dtype=dtype))]


def run(section: TrainSection, weights: list[nn.Parameter], steps: int, seed: int = 5) -> torch.optim.Optimizer:
    """Gradients that keep their direction, so that the updates add up to steps * lr where none is lost."""
    optimizer, generator = make_optimizer(weights, section, seed), torch.Generator().manual_seed(2)
    for _ in range(steps):
        for weight in weights:
            weight.grad = (0.2 + 0.1 * torch.randn(weight.shape, generator=generator)).to(weight.dtype)
        optimizer.step()
    return optimizer


def moved(section: TrainSection, dtype: torch.dtype) -> float:
    """Mean change of a matrix in 40 steps, of lr * 40."""
    own = parameters(dtype)
    run(section, own, 40)
    change = own[0].detach().double() - parameters(dtype)[0].detach().double()
    return -float(change.mean()) / (40 * section.lr)


def test_stochastic_rounding_is_right_in_the_mean_and_takes_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    for value in (1 + 2**-10, -3.3, 1e-30, 0.0, 7.0):
        rounded = round_stochastically(torch.full((50_000,), value), generator)
        assert rounded.dtype == torch.bfloat16
        assert float(rounded.double().mean()) == pytest.approx(value, rel=1e-4)
        assert len(rounded.unique()) == (1 if value in (0.0, 7.0) else 2)
    whole = torch.randn(1000).to(torch.bfloat16)
    assert torch.equal(round_stochastically(whole.float(), generator), whole)
    assert torch.isinf(round_stochastically(torch.tensor([torch.inf]), generator)).all()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_small_updates_of_bfloat16_weights_are_kept_by_stochastic_rounding(optimizer: str) -> None:
    section = dataclasses.replace(SMALL_LR, optimizer=optimizer)
    assert moved(section, torch.float32) == pytest.approx(1, abs=0.15)
    assert moved(section, torch.bfloat16) == pytest.approx(1, abs=0.15)
    assert moved(dataclasses.replace(section, rounding="nearest"), torch.bfloat16) < 0.4


def test_the_second_moment_falls_only_where_it_is_rounded_stochastically() -> None:
    """beta2 takes a thousandth away, half a step of bfloat16 is two."""
    kept = {}
    for rounding in ("stochastic", "nearest"):
        own = parameters(torch.bfloat16)
        optimizer = run(dataclasses.replace(SMALL_LR, rounding=rounding), own, 3)
        before = optimizer.state[own[0]]["exp_avg_sq"].double().mean()
        for _ in range(100):
            own[0].grad = torch.zeros_like(own[0])
            optimizer.step()
        kept[rounding] = float(optimizer.state[own[0]]["exp_avg_sq"].double().mean() / before)
    assert kept["nearest"] == 1
    assert kept["stochastic"] == pytest.approx(0.999**100, rel=5e-3)


def test_float32_weights_are_updated_by_torchs_own_kernel() -> None:
    own, torchs = parameters(torch.float32), parameters(torch.float32)
    run(dataclasses.replace(SECTION, weight_decay=0.0), own, 5)
    optimizer, generator = torch.optim.AdamW(torchs, lr=SECTION.lr, weight_decay=0.0), torch.Generator().manual_seed(2)
    for _ in range(5):
        for weight in torchs:
            weight.grad = 0.2 + 0.1 * torch.randn(weight.shape, generator=generator)
        optimizer.step()
    for one, other in zip(own, torchs, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_large_weights_are_updated_in_chunks(monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """As whole ones in float32 are, but for the rounding of bfloat16 numbers."""
    section = dataclasses.replace(SECTION, optimizer=optimizer)
    monkeypatch.setattr(optimizers, "CHUNK", 1024)
    own, exact = parameters(torch.bfloat16), parameters(torch.float32)
    exact[0].data.copy_(own[0].detach())
    first, second = run(section, own, 1), run(section, exact, 1)
    error = (own[0].detach().float() - exact[0].detach()).abs() / exact[0].detach().abs().clamp(min=1e-4)
    assert 0 < float(error.max()) <= 2**-7
    if optimizer == "adamw8bit":  # the gradients alone were rounded
        scales = [state_of(one, weights[0])["absmax2"] for one, weights in ((first, own), (second, exact))]
        assert torch.allclose(*scales, rtol=2**-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_remembered_goes_on_to_the_same_bits(optimizer: str, dtype: torch.dtype) -> None:
    section = dataclasses.replace(SECTION, optimizer=optimizer)
    straight = parameters(dtype)
    first = run(section, straight, 3)
    again = parameters(dtype)
    second = make_optimizer(again, section, 5)
    for one, other in zip(straight, again, strict=True):
        other.data.copy_(one.detach())
        restore(second, other, {key: value.clone() for key, value in state_of(first, one).items()})
    for optimizer_, own in ((first, straight), (second, again)):
        for weight in own:
            weight.grad = torch.full_like(weight, 0.3)
        optimizer_.step()
    for one, other in zip(straight, again, strict=True):
        assert torch.equal(one, other)
        assert state_of(first, one).keys() == state_of(second, other).keys() <= set(optimizers.STATES)
        assert all(torch.equal(state_of(first, one)[key], state_of(second, other)[key]) for key in state_of(first, one))


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw8bit", "float32"), ("adamw8bit", "bfloat16")])
def test_a_killed_training_with_8_bit_moments_ends_with_the_same_bytes(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path, optimizer: str, precision: str
) -> None:
    section = dataclasses.replace(
        SECTION, optimizer=optimizer, precision=precision, checkpoint_steps=2, max_steps=5, freeze=("encoder",)
    )

    def start() -> SpeechModel:
        own = fresh(speech)
        own.model.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        return own

    straight = start()
    log = fit(straight, pairs, prompt, tmp_path / "straight", section).log
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 4)
        fit(start(), pairs, prompt, tmp_path / "killed", section)
    (point,) = resume.checkpoints(tmp_path / "killed")
    assert sorted(file.name for file in point.iterdir()) == ["state.json", "state.safetensors"]
    with safe_open(point / "state.safetensors", "pt") as stored:
        kinds = {key.partition("/")[0] for key in stored.keys()}  # noqa: SIM118  # it is no dictionary
        moments: Tensor = stored.get_tensor("state1/model.language_model.embed_tokens.weight")
    assert kinds == {"weight", "state1", "state2", "absmax1", "absmax2", "step"}
    assert moments.dtype == torch.uint8
    resumed = start()
    assert fit(resumed, pairs, prompt, tmp_path / "killed", section).log == log
    assert not differing(weights(straight), weights(resumed))
