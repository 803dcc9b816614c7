"""The loss on a teacher's probabilities, and how these are kept on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sordino.errors import ArtifactError
from sordino.measure import predict
from sordino.models.answers import Probabilities, SpeechLM, Targets
from sordino.models.speech import SpeechModel
from sordino.training import teacher_rows
from sordino.training.collate import Example, collate, silenced
from sordino.training.objectives import Distillation, cross_entropy, summed_loss
from sordino.training.teacher_rows import StoredRows, likeliest
from tests.tiny import fresh

POSITIONS, VOCABULARY = 7, 19


def drawn(seed: int) -> Tensor:
    return 3 * torch.randn(POSITIONS, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ANSWERS = torch.arange(POSITIONS) * 5 % VOCABULARY
STUDENT, TEACHER = drawn(1), drawn(2)


def targets(top: int, suppressed: tuple[int, ...] = ()) -> Targets:
    return Targets(ANSWERS, likeliest(TEACHER, top, suppressed))


def full_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """torch's own, over the whole vocabulary."""
    logs = student.log_softmax(-1), teacher.log_softmax(-1)
    return torch.nn.functional.kl_div(*logs, reduction="sum", log_target=True)


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("top", [VOCABULARY, VOCABULARY + 5])
def test_with_all_tokens_it_is_the_whole_divergence(weight: float, top: int) -> None:
    student, reference = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    loss = Distillation(weight)(student, targets(top))
    hard = torch.nn.functional.cross_entropy(reference, ANSWERS, reduction="sum")
    expected = (1 - weight) * hard + weight * full_divergence(TEACHER, reference)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert reference.grad is not None
    assert torch.allclose(student.grad, reference.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("top", [1, 4, VOCABULARY - 2])
def test_the_tokens_that_were_not_kept_are_one_class(top: int) -> None:
    """Sums of probabilities, written out."""
    p, q = TEACHER.softmax(-1), STUDENT.softmax(-1)
    expected = 0.0
    for row in range(POSITIONS):
        kept = p[row].argsort(descending=True)[:top].tolist()
        rest = [i for i in range(VOCABULARY) if i not in kept]
        for members in [[i] for i in kept] + [rest]:
            mine, theirs = float(q[row, members].sum()), float(p[row, members].sum())
            expected += theirs * (torch.tensor(theirs / mine, dtype=torch.float64).log().item())
    loss = float(Distillation(1.0)(STUDENT, targets(top)))
    assert loss == pytest.approx(expected, rel=1e-10)
    assert loss < float(full_divergence(TEACHER, STUDENT))


@pytest.mark.parametrize("top", [1, 5, VOCABULARY])
def test_gradients_are_those_of_finite_differences(top: int) -> None:
    given = targets(top)
    assert torch.autograd.gradcheck(
        lambda logits: Distillation(0.8)(logits, given), (STUDENT.clone().requires_grad_(),)
    )


def test_nothing_is_lost_and_nothing_learnt_where_the_student_is_the_teacher() -> None:
    same = TEACHER.clone().requires_grad_()
    loss = Distillation(1.0)(same, targets(4))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert same.grad is not None
    assert float(same.grad.abs().max()) < 1e-12


def test_without_weight_it_is_the_cross_entropy() -> None:
    assert float(Distillation(0.0)(STUDENT, targets(4))) == pytest.approx(float(cross_entropy(STUDENT, targets(4))))


@pytest.mark.parametrize("top", [3, VOCABULARY])
def test_suppressed_tokens_have_no_probability(top: int) -> None:
    """As where the teacher translates: what is left sums to one, and the student learns not to say them."""
    first = int(TEACHER[0].argmax())
    given = targets(top, (first, 4))
    assert given.teacher is not None
    allowed = TEACHER.clone()
    allowed[:, [first, 4]] = -torch.inf
    assert torch.allclose(given.teacher.logs.exp().sum(-1), torch.ones(POSITIONS, dtype=torch.float64))
    assert int(given.teacher.ids[0, 0]) == int(allowed[0].argmax())
    student = STUDENT.clone().requires_grad_()
    Distillation(1.0)(student, given).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    if top == VOCABULARY:  # at any smaller top they share a class with others
        assert torch.allclose(student.grad[:, 4], STUDENT.softmax(-1)[:, 4])


def stored(tmp_path: Path, rows: Probabilities) -> Path:
    file = tmp_path / "00000.safetensors"
    teacher_rows.store(Probabilities(rows.ids.int(), rows.logs.half()), file)
    return file


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = likeliest(TEACHER, 5)
    file = stored(tmp_path, rows)
    teacher_rows.check(file, POSITIONS, 5)
    back = teacher_rows.joined([StoredRows(file, 4, 3), StoredRows(file, 0, 2)], torch.device("cpu"))
    order = [4, 5, 6, 0, 1]
    assert torch.equal(back.ids, rows.ids[order])
    assert torch.allclose(back.logs.double().exp(), rows.logs[order].exp(), rtol=5e-3, atol=1e-6)
    assert torch.allclose(back.logs.exp().sum(-1), torch.ones(5))
    again = tmp_path / "again"
    again.mkdir()
    assert stored(again, rows).read_bytes() == file.read_bytes()
    data = sum(tensor.numel() * tensor.element_size() for tensor in load_file(file).values())
    assert data == POSITIONS * predict.position_bytes(5)


@pytest.mark.parametrize("damage", ["cut", "a byte", "fewer rows", "no file of tensors"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    file = stored(tmp_path, likeliest(TEACHER, 5))
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-40])
    elif damage == "a byte":
        data[-3] ^= 1
        file.write_bytes(data)
    elif damage == "fewer rows":
        save_file({name: tensor[:3].contiguous() for name, tensor in load_file(file).items()}, file)
    else:
        file.write_text("nothing")
    with pytest.raises(ArtifactError, match=r"00000\.safetensors, the teacher's probabilities, cannot be used"):
        teacher_rows.check(file, POSITIONS, 5)


def test_a_file_that_went_meanwhile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.safetensors"):
        StoredRows(tmp_path / "gone.safetensors", 0, 3).read()


def test_chunks_of_positions_are_as_all_at_once(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path
) -> None:
    own = fresh(speech)
    batch = collate(own, pairs, prompt)
    file = tmp_path / "rows.safetensors"
    rows = teacher_rows.of_batch(SpeechLM(speech), batch, 6, 1000)
    chunked = teacher_rows.of_batch(SpeechLM(speech), batch, 6, 4)
    assert torch.equal(rows.ids, chunked.ids)
    assert torch.allclose(rows.logs.float(), chunked.logs.float(), atol=2e-3)
    teacher_rows.store(rows, file)
    learning, first = [], 0
    for pair in pairs:
        learning.append(Example(pair.clip, pair.answer, None, StoredRows(file, first, len(pair.answer))))
        first += len(pair.answer)
    batch = collate(own, learning, prompt)
    assert batch.targets.teacher is not None
    assert torch.equal(batch.targets.teacher.ids, rows.ids.long())
    row_bytes = 4 * own.model.get_output_embeddings().weight.shape[0]
    sums = []
    for most in (None, 5 * row_bytes):
        own.model.zero_grad()
        loss = summed_loss(SpeechLM(own), batch, Distillation(0.8), most)
        loss.backward()  # type: ignore[no-untyped-call]
        sums.append(
            (float(loss.detach()), torch.cat([p.grad.flatten() for p in own.model.parameters() if p.grad is not None]))
        )
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)
    assert torch.allclose(sums[0][1], sums[1][1], rtol=1e-3, atol=1e-5 * float(sums[0][1].abs().max()))


def test_a_silenced_batch_has_no_loss(speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path) -> None:
    """For a process that no clips are left for."""
    rows = teacher_rows.of_batch(SpeechLM(speech), collate(speech, pairs[:1], prompt), 6, 1000)
    file = tmp_path / "rows.safetensors"
    teacher_rows.store(rows, file)
    one = replace(pairs[0], teacher=StoredRows(file, 0, len(pairs[0].answer)))
    own = fresh(speech)
    loss = summed_loss(SpeechLM(own), silenced(collate(own, [one], prompt)), Distillation(0.8))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert all(not p.grad.any() for p in own.model.parameters() if p.grad is not None)


def test_of_a_partly_silenced_batch_the_first_clips_are_compared(
    speech: SpeechModel, pairs: list[Example], prompt: str, tmp_path: Path
) -> None:
    taught = []
    for i, pair in enumerate(pairs[:2]):
        rows = teacher_rows.of_batch(SpeechLM(speech), collate(speech, [pair], prompt), 6, 1000)
        teacher_rows.store(rows, tmp_path / f"{i}.safetensors")
        taught.append(replace(pair, teacher=StoredRows(tmp_path / f"{i}.safetensors", 0, len(pair.answer))))
    both, one = (collate(speech, taught[:count], prompt) for count in (2, 1))
    loss = summed_loss(SpeechLM(speech), silenced(both, 1), Distillation(0.8))
    assert loss.item() == pytest.approx(summed_loss(SpeechLM(speech), one, Distillation(0.8)).item(), rel=1e-5)


def test_only_a_batch_whose_examples_all_have_probabilities_has_them(
    speech: SpeechModel, pairs: list[Example], prompt: str
) -> None:
    assert collate(speech, pairs, prompt).targets.teacher is None
