"""The training loop: accumulation, resume to the same bytes, frozen parts, refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sordino.config.schema import TrainSection
from sordino.errors import DataError
from sordino.models import adapters, registry
from sordino.models.answers import SpeechLM
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.runtime.world import World
from sordino.training import resume, trainer
from sordino.training.collate import Example, collate
from sordino.training.objectives import Step
from sordino.training.trainer import Trained, freeze, mean_loss, plan_steps, train, weight_dtype
from tests.tiny import fresh

SECTION = TrainSection(batch_size=2, lr=1e-3, epochs=3, scheduler="cosine", warmup_ratio=0.2, weight_decay=0.01)


def fit(
    speech: SpeechModel,
    pairs: Sequence[Example],
    prompt: str,
    state: Path,
    section: TrainSection = SECTION,
    **options: Any,
) -> Trained:
    return train(speech, pairs, section, prompt=prompt, seed=3, state=state, label="test", **options)


def weights(speech: SpeechModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in speech.model.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def accumulated(speech: SpeechModel, chosen: Sequence[Example], part: int, prompt: str) -> float:
    """Gradients of a step, run in parts; its loss."""
    batches = trainer._batches(speech, trainer._shares(chosen, part, World()), prompt)
    return trainer._accumulate(Step(speech), batches, sum(len(e.answer) for e in chosen))


class Operations(TorchDispatchMode):
    """Collects what runs, by name, backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The training dies after so many optimizer steps, before their log is written."""
    update, count = trainer._Run.update, iter(range(1, 1000))

    def fatal(self: trainer._Run) -> float:
        rate = update(self)
        if next(count) == steps:
            raise Killed
        return rate

    monkeypatch.setattr(trainer._Run, "update", fatal)


@pytest.mark.parametrize("batch_size", [4])
def test_accumulation_changes_nothing(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path, batch_size: int
) -> None:
    """Trap 12: answers of different lengths in the parts, so a mean of means or a multiplied loss would show."""
    found = []
    for accumulate in (1, 2):
        own = fresh(speech)
        section = TrainSection(batch_size=batch_size, accumulate=accumulate, max_steps=1, max_grad_norm=1e9)
        gradients: dict[str, Tensor] = {}
        total = accumulated(own, pairs[:batch_size], batch_size // accumulate, prompt)
        gradients = {n: p.grad.clone() for n, p in own.model.named_parameters() if p.grad is not None}
        own.model.zero_grad()
        result = fit(own, pairs, prompt, tmp_path / str(accumulate), section)
        found.append((total, gradients, result.log[0]["loss"], weights(own)))
    (loss, gradients, logged, after), (loss2, gradients2, logged2, after2) = found
    assert loss == pytest.approx(loss2, abs=1e-6)
    assert logged == pytest.approx(logged2, abs=1e-6)
    assert gradients.keys() == gradients2.keys()
    assert max(float((gradients[n] - gradients2[n]).abs().max()) for n in gradients) < 2e-6  # of sums in another order
    assert max(float((after[n] - after2[n]).abs().max()) for n in after) < 0.2 * section.lr


def test_four_parts_are_as_one(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    own = fresh(speech)
    sums = []
    for part in (4, 1):
        own.model.zero_grad()
        loss = accumulated(own, pairs[:4], part, prompt)
        grads = torch.cat([p.grad.flatten() for p in own.model.parameters() if p.grad is not None])
        sums.append((loss, grads))
    assert sums[0][0] == pytest.approx(sums[1][0], abs=1e-6)
    assert torch.allclose(sums[0][1], sums[1][1], atol=1e-6)


@pytest.mark.parametrize("kill", [2, 5, 8])
def test_a_killed_training_ends_with_the_same_bytes(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path, kill: int
) -> None:
    section = dataclasses.replace(SECTION, checkpoint_steps=2)
    straight = fresh(speech)
    log = fit(straight, pairs, prompt, tmp_path / "straight", section, dev=pairs[:2]).log
    assert len(log) == 9

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, kill)
        fit(fresh(speech), pairs, prompt, tmp_path / "killed", section, dev=pairs[:2])
    points = resume.checkpoints(tmp_path / "killed")
    assert [p.name for p in points] == ([f"step-{(kill - 1) // 2 * 2:08}"] if kill > 2 else [])
    resumed = fresh(speech)
    again = fit(resumed, pairs, prompt, tmp_path / "killed", section, dev=pairs[:2]).log
    assert again == log
    assert not differing(weights(straight), weights(resumed))


def test_a_torn_resume_point_does_not_count(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path
) -> None:
    section = dataclasses.replace(SECTION, checkpoint_steps=2, max_steps=5)
    straight = fresh(speech)
    fit(straight, pairs, prompt, tmp_path / "straight", section)
    torn = tmp_path / "killed" / ".step-00000004.tmp"
    torn.mkdir(parents=True)
    (torn / "state.safetensors").write_bytes(b"half")
    resumed = fresh(speech)
    fit(resumed, pairs, prompt, tmp_path / "killed", section)
    assert not differing(weights(straight), weights(resumed))
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["step-00000004"]


def test_an_adapter_with_dropout_resumes_too(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path
) -> None:
    section = dataclasses.replace(SECTION, checkpoint_steps=1, max_steps=4, gradient_checkpointing=True)
    found = []
    for kill in (None, 3):
        own = fresh(speech)
        adapters.attach(own, adapters.LoraOptions(r=4, alpha=8, dropout=0.3), seed=0)
        if kill:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
                killed_after(patch, kill)
                fit(own, pairs, prompt, tmp_path / str(kill), section)
            own = fresh(speech)
            adapters.attach(own, adapters.LoraOptions(r=4, alpha=8, dropout=0.3), seed=0)
        log = fit(own, pairs, prompt, tmp_path / str(kill), section).log
        found.append((log, weights(own)))
    assert found[0][0] == found[1][0]
    assert not differing(found[0][1], found[1][1])
    changed = differing(weights_of_adapter(speech), found[0][1])
    assert changed
    assert all(".lora_" in name for name in changed)


def weights_of_adapter(speech: SpeechModel) -> dict[str, Tensor]:
    own = fresh(speech)
    adapters.attach(own, adapters.LoraOptions(r=4, alpha=8, dropout=0.3), seed=0)
    return weights(own)


@pytest.mark.parametrize(
    ("parts", "frozen"),
    [
        (("encoder",), ("model.audio_tower",)),
        (("encoder", "projector"), ("model.audio_tower", "model.multi_modal_projector")),
        (("embeddings",), ("model.language_model.embed_tokens", "model.audio_tower.embed_positions")),
        ((), ("model.audio_tower.embed_positions",)),
    ],
)
def test_frozen_parts_stay_as_they_were(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path, parts: Any, frozen: tuple[str, ...]
) -> None:
    section = dataclasses.replace(SECTION, freeze=parts, max_steps=2)
    own = fresh(speech)
    before = weights(own)
    freeze(own, section)
    if "encoder" in parts:
        features = Features(own, tmp_path / "cache")
        pairs = [dataclasses.replace(e, encoded=features.encode(e.clip, prompt)) for e in pairs]
    fit(own, pairs, prompt, tmp_path / "state", section)
    changed = differing(before, weights(own))
    assert sorted(set(before) - set(changed)) == sorted(n for n in before if n.startswith(frozen))


@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_what_the_class_freezes_is_frozen_after_loading(pico: Callable[[str], SpeechModel], family: str) -> None:
    """transformers 5 loads every weight as one to train, the sinusoidal positions too; and what speech never runs."""
    own = pico(family)
    with torch.device("meta"):
        built = type(own.model)(own.model.config)
    runs = own.family.tensors.runs
    meant = [name for name, p in built.named_parameters() if not p.requires_grad or not runs(name)]
    assert bool(meant) == bool((*own.family.tensors.fixed, *own.family.tensors.idle))
    assert [name for name, p in own.model.named_parameters() if not p.requires_grad] == meant


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16-mixed"])
def test_training_in_bfloat16(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path, precision: Any
) -> None:
    section = dataclasses.replace(SECTION, precision=precision, max_steps=6, checkpoint_steps=2, scheduler="constant")
    held = weight_dtype(section, torch.device("cpu"))
    assert held == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    own = fresh(speech)
    own.model.to(held)
    log = fit(own, pairs[:2], prompt, tmp_path, section).log
    assert log[-1]["loss"] < log[0]["loss"]
    assert {p.dtype for p in own.model.parameters()} == {held}
    resumed = fresh(speech)
    resumed.model.to(held)
    assert fit(resumed, pairs[:2], prompt, tmp_path, section).log == log  # from step 4
    assert not differing(weights(own), weights(resumed))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_attention_in_16_bits_on_a_cpu_goes_back_in_plain_products(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path, checkpointing: bool
) -> None:
    """torch's fused kernel takes 7 times as long there as in float32, for which it is the best."""
    ran: dict[str, set[str]] = {}
    for precision in ("float32", "bfloat16-mixed"):
        section = dataclasses.replace(SECTION, precision=precision, max_steps=1, gradient_checkpointing=checkpointing)
        with Operations() as operations:
            fit(fresh(speech), pairs, prompt, tmp_path / precision, section)
        ran[precision] = {name for name in operations.names if "attention" in name and "backward" in name}
    assert ran["float32"] == {"aten::_scaled_dot_product_flash_attention_for_cpu_backward"}
    assert ran["bfloat16-mixed"] == set()


def test_training_learns_and_logs(speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path) -> None:
    section = TrainSection(batch_size=3, lr=3e-3, epochs=8, scheduler="linear")
    own = fresh(speech)
    before = mean_loss(own, pairs, 4, prompt)
    result = fit(own, pairs, prompt, tmp_path, section, dev=pairs)
    assert result.steps == len(result.log) == 16
    assert result.tokens == 8 * sum(len(e.answer) for e in pairs)
    assert [row["step"] for row in result.log] == list(range(1, 17))
    assert [row["step"] for row in result.log if "dev_loss" in row] == list(range(2, 17, 2))
    assert result.log[-1]["epoch"] == 8.0
    rates = [row["lr"] for row in result.log]
    assert rates[0] == 3e-3
    assert rates == sorted(rates, reverse=True)
    after = mean_loss(own, pairs, 4, prompt)
    assert result.log[-1]["dev_loss"] == pytest.approx(after, abs=1e-6)
    assert after < 0.7 * before
    assert not own.model.training


def test_the_mean_loss_does_not_depend_on_the_batches(speech: SpeechModel, pairs: list[Example], prompt: str) -> None:
    assert mean_loss(speech, pairs, 1, prompt) == pytest.approx(mean_loss(speech, pairs, 4, prompt), abs=1e-5)


def test_steps_are_planned(pairs: list[Example]) -> None:
    lengths = [e.length for e in pairs]
    assert len(plan_steps(lengths, TrainSection(epochs=1.5, batch_size=2), 0)) == 4  # 4.5 rounds to even
    assert len(plan_steps(lengths, TrainSection(epochs=0.01, batch_size=2), 0)) == 1
    assert len(plan_steps(lengths, TrainSection(epochs=9, batch_size=4, max_steps=5), 0)) == 5
    long = plan_steps(lengths, TrainSection(epochs=2, batch_size=4), 0)
    assert plan_steps(lengths, TrainSection(epochs=1, batch_size=4), 0) == long[:2]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_no_number_is_refused(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path, what: str
) -> None:
    own = fresh(speech)
    if what == "loss":
        with torch.no_grad():
            own.model.get_output_embeddings().weight[0, 0] = float("nan")
    else:
        own.model.get_output_embeddings().weight.register_hook(lambda grad: grad * float("inf"))
    before = weights(own)
    with pytest.raises(DataError, match=rf"test: the {what} became (nan|inf) at step 1\. Lower lr") as caught:
        fit(own, pairs, prompt, tmp_path)
    assert caught.value.remedy
    assert [n for n in before if not torch.equal(before[n].nan_to_num(), weights(own)[n].nan_to_num())] == []


def test_nothing_to_train_on_is_refused(speech: SpeechModel, prompt: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training clips"):
        fit(fresh(speech), [], prompt, tmp_path)


@pytest.mark.parametrize("parts", [1, 2])
def test_training_is_the_plain_loop(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path, parts: int
) -> None:
    """To the bit: what reads batches ahead, spreads them over processes and keeps resume points changes nothing."""
    section = TrainSection(batch_size=4, accumulate=parts, max_steps=3, lr=1e-3, scheduler="constant")
    own, plain = fresh(speech), fresh(speech)
    log = fit(own, pairs, prompt, tmp_path, section).log
    plain.model.train()
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in plain.model.parameters() if p.requires_grad and (p.ndim >= 2) == matrices]}
         for matrices in (True, False)], lr=section.lr, weight_decay=0.0, fused=True,
    )  # fmt: skip
    losses = []
    for indices in plan_steps([e.length for e in pairs], section, 3):
        chosen, total = [pairs[i] for i in indices], 0.0
        tokens = sum(len(e.answer) for e in chosen)
        for start in range(0, len(chosen), 4 // parts):
            batch = collate(plain, chosen[start : start + 4 // parts], prompt)
            loss = torch.nn.functional.cross_entropy(SpeechLM(plain)(batch), batch.answers, reduction="sum")
            (loss / tokens).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / tokens)
    assert [row["loss"] for row in log] == losses
    assert not differing(weights(own), weights(plain))


def test_the_dev_loss_of_mixed_precision_reads_its_own_audio(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path
) -> None:
    """Mel spectrograms are not made in bfloat16."""
    section = dataclasses.replace(SECTION, precision="bfloat16-mixed", max_steps=1)
    (row,) = fit(fresh(speech), pairs, prompt, tmp_path, section, dev=pairs[:2]).log
    assert row["dev_loss"] == pytest.approx(mean_loss(speech, pairs[:2], 2, prompt), rel=0.5)
