"""Logits at answer positions: the one forward pass of training, of scoring by loss and divergence, and of sensitivity.

Labels are placed by position (the answer is each row's last tokens), never by searching for a prompt length: with left
padding `labels[:, :prompt_length]` masks the wrong tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from sordino.data.checks import check_texts
from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.models.control_tokens import control_tokens
from sordino.models.family import AudioInputs
from sordino.models.features import EncodedClip
from sordino.models.speech import SpeechModel, pad_left

IGNORED = -100


@dataclass(frozen=True)
class Probabilities:
    """A distribution over the vocabulary at each of K positions, as far as it was kept.

    ids: (K, k) of the likeliest tokens; logs: (K, k + 1), log-probabilities of these, and last of all others together.
    """

    ids: Tensor
    logs: Tensor

    def rows(self, part: slice) -> Probabilities:
        """Those of some of the positions."""
        return Probabilities(self.ids[part], self.logs[part])


@dataclass(frozen=True)
class Targets:
    """What K answer positions should predict, in the order of their logits.

    answers: (K,) ids; teacher: its distributions at the same positions, where training learns from them.
    Every field has a row for each position, so that `rows` cuts all of them alike.
    """

    answers: Tensor
    teacher: Probabilities | None = None

    def __len__(self) -> int:
        return len(self.answers)

    def rows(self, part: slice) -> Targets:
        """Those of some of the positions."""
        return Targets(self.answers[part], self.teacher.rows(part) if self.teacher else None)


@dataclass(frozen=True)
class AnswerBatch:
    """ids, mask, labels: (B, S), left padded, labels IGNORED but for answer tokens.

    states: (N, D) of every clip, or inputs to run through an encoder that is trained; teacher: as in Targets.
    matched: (N, D) of every clip that the encoder should give (training/matching.py); the answers then say nothing.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    states: Sequence[Tensor] | None
    inputs: AudioInputs | None
    teacher: Probabilities | None = None
    matched: Sequence[Tensor] | None = None

    @property
    def tokens(self) -> int:
        """Answer tokens."""
        return int((self.labels != IGNORED).sum())

    @property
    def answers(self) -> Tensor:
        """Answer tokens of all rows, one row after the other: (K,)."""
        return self.labels[self.labels != IGNORED]

    @property
    def targets(self) -> Targets:
        """For an objective."""
        return Targets(self.answers, self.teacher)


def answers_of(
    speech: SpeechModel, clips: Sequence[Clip], style: str, texts: Sequence[str] | None = None
) -> list[list[int]]:
    """Ids of every clip's answer. texts: instead of the clips' own target texts.

    Raises DataError that names the clips whose texts hold control tokens of this model.
    """
    if texts is not None:
        clips = [replace(clip, target_text=text) for clip, text in zip(clips, texts, strict=True)]
    try:
        return [speech.answer_ids(clip.target_text or "", style) for clip in clips]
    except DataError as error:
        bad = check_texts(clips, partial(control_tokens, speech.processor.tokenizer))
        more = f" (and {len(bad) - 1} clips more)" if len(bad) > 1 else ""
        raise DataError(f"{bad[0].id}: {bad[0].problem.removesuffix('.')}{more}.", error.remedy) from None


def answer_batch(
    speech: SpeechModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    states: Sequence[Tensor] | None = None,
    inputs: AudioInputs | None = None,
) -> AnswerBatch:
    """Prompts with expanded placeholders and their answers' ids -> one batch on the model's device."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids, mask = pad_left(rows, speech.pad_id(), speech.device)
    labels = torch.full_like(ids, IGNORED)
    for row, answer in enumerate(answers):
        labels[row, -len(answer) :] = ids[row, -len(answer) :]
    return AnswerBatch(ids, mask, labels, states, inputs)


def encoded_batch(speech: SpeechModel, encoded: Sequence[EncodedClip], answers: Sequence[Sequence[int]]) -> AnswerBatch:
    """As `answer_batch`, of encoded clips."""
    return answer_batch(speech, [clip.ids for clip in encoded], answers, [clip.states for clip in encoded])


class SpeechLM(nn.Module):
    """A speech model as one module, so that what wraps modules (sharding, hooks) sees a whole forward pass."""

    def __init__(self, speech: SpeechModel) -> None:
        super().__init__()
        self.speech = speech
        self.model = speech.model

    def forward(self, batch: AnswerBatch) -> Tensor:
        """Logits that predict the answer tokens (K, V) in float32, in the order of `batch.answers`."""
        return self.logits(self.hidden(batch))

    def hidden(self, batch: AnswerBatch) -> Tensor:
        """What the head sees at the answer positions (K, H), which spares logits of (B, S, V).

        states (N, D) -> projector (A, H) -> embeddings (B, S, H) -> decoder -> the positions before answer tokens
        """
        speech = self.speech
        if batch.states is not None:
            states = list(batch.states)
        else:
            assert batch.inputs is not None
            states = speech.states(batch.inputs)
        given = speech.inputs(batch.ids, batch.mask, speech.project(states), among=batch.labels == IGNORED)
        hidden: Tensor = speech.part("decoder")(**given, use_cache=False).last_hidden_state
        return hidden[:, :-1][batch.labels[:, 1:] != IGNORED]

    def logits(self, hidden: Tensor) -> Tensor:
        """(K, H) -> (K, V) in float32."""
        return self.speech.family.decoder.logits(self.model, hidden).float()
