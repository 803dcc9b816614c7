"""What it costs a model when one of its parts alone is rounded to fewer bits, or when ranked layers are dropped.

A part is what gets one number of bits: each encoder layer, the projector, the embedding, each decoder layer's attention
and its MLP, the head. Its weights are rounded in place as they would be stored, the clips' references are run through
the model in teacher-forced passes, and the weights are put back bit for bit. The cost is per token of the references:

- kl: divergence from the predictions of the model as it is, never below zero and little noise on few clips;
- loss: how much the cross-entropy of the references rises; it may fall, and then the cost is negative.

Costs are measured one part at a time and added up: what two rounded parts do to each other is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sordino.errors import FamilyError
from sordino.layouts import tables
from sordino.models.answers import SpeechLM, encoded_batch
from sordino.models.features import EncodedClip
from sordino.models.parts import LAYER, part_of
from sordino.models.speech import SpeechModel
from sordino.pruning import criteria
from sordino.pruning.engines import open_engine
from sordino.pruning.layer import Layer
from sordino.pruning.search import without
from sordino.quantization.integer import Scheme, quantize

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Change:
    """One thing that is done to the model: a part rounded to so many bits, or so many ranked layers dropped."""

    part: str = ""
    bits: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        return f"{self.part} in {self.bits} bits" if self.part else f"without {self.dropped} layers"


@dataclass(frozen=True)
class Cost:
    """In nats a token."""

    change: Change
    value: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self.change), "cost": self.value}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Cost:
        return cls(Change(row["part"], row["bits"], row["dropped"]), row["cost"])


def part_of_weight(name: str) -> str | None:
    """The part of a linear layer's or an embedding's weight, by its name as stored or as the live model has it.

    None for what is never rounded: tables of positions and what stands outside the layers.
    """
    part, layer = part_of(name), LAYER.search(name)
    if part == "audio_encoder":
        return f"encoder.{layer[1]}" if layer else None
    if part == "decoder":
        return f"decoder.{layer[1]}.{'attention' if 'attn' in name else 'mlp'}" if layer else None
    return part if part in ("projector", "embedding", "head") else None


def weights(speech: SpeechModel) -> dict[str, list[Tensor]]:
    """Part -> its weights, in the order of the model; a head tied to the embedding is in it once, as the embedding."""
    by_part: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    for name, module in speech.model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Embedding)) or id(module.weight) in seen:
            continue
        part = part_of_weight(f"{name}.weight")
        if part and (part == "embedding" or isinstance(module, nn.Linear)):  # no tables of positions
            seen.add(id(module.weight))
            by_part.setdefault(part, []).append(module.weight)
    return by_part


@contextmanager
def rounded(parameters: Sequence[Tensor], bits: int) -> Iterator[None]:
    """Inside the block the weights are as they would be read back; afterwards they are bit for bit what they were."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                scheme = Scheme(bits, tables.group_for(parameter.shape[1]))
                parameter.copy_(quantize(parameter, scheme).dequantized(parameter.dtype))
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)


class Sensitivity:
    """A model and the clips it is asked about; one cost at a time.

    answers: ids of the references, with the stop token; memory: bytes for batches; reencode: encodes a clip with the
    audio encoder as it then is. The predictions of the model as it is are kept, (n, V) of each clip in the model's own
    type, on the CPU.
    """

    def __init__(
        self,
        speech: SpeechModel,
        encoded: Sequence[EncodedClip],
        answers: Sequence[Sequence[int]],
        measure: str,
        memory: int,
        reencode: Callable[[EncodedClip], EncodedClip],
    ) -> None:
        self.speech, self.encoded, self.answers, self.measure = speech, encoded, answers, measure
        self.memory, self.reencode = memory, reencode
        self.weights = weights(speech)
        self.tokens = sum(len(answer) for answer in answers)
        self.before: dict[int, Tensor] = {}  # clip -> logits
        self.unchanged = 0.0
        if measure == "kl":
            self.before = {clip: logits.to(speech.dtype).cpu() for clip, logits in self._forced(encoded)}
        else:
            self.unchanged = self._value(encoded)

    def cost(self, change: Change, order: Sequence[Layer] = ()) -> Cost:
        """order: the ranking that layers are dropped by. Raises FamilyError where the model computes no number then."""
        if change.part:
            with rounded(self.weights[change.part], change.bits):
                in_encoder = change.part.startswith("encoder.")
                value = self._value([self.reencode(h) for h in self.encoded] if in_encoder else self.encoded)
        else:
            with without(self.speech, order[: change.dropped]):
                value = self._value(self.encoded)
        if not math.isfinite(value):
            raise FamilyError(f"{self.speech.path}: {change} the model computes {value}.", "Measure in float32.")
        return Cost(change, value - self.unchanged)

    def _value(self, encoded: Sequence[EncodedClip]) -> float:
        """The measure of the model as it then is, per token."""
        total = 0.0
        for clip, logits in self._forced(encoded):
            if self.measure == "kl":
                total += criteria.kl(logits, self.before[clip].to(logits.device, logits.dtype))
            else:
                total += criteria.loss(logits, torch.tensor(self.answers[clip], device=logits.device))
        return total / self.tokens

    def _forced(self, encoded: Sequence[EncodedClip]) -> Iterator[tuple[int, Tensor]]:
        """Every clip and its logits (n, V) in float32."""
        model = SpeechLM(self.speech)
        for batch in open_engine(self.speech, 0, self.memory).batches(
            encoded, range(len(encoded)), dict(enumerate(self.answers))
        ):
            answers = [self.answers[i] for i in batch]
            with torch.inference_mode():
                logits = model(encoded_batch(self.speech, [encoded[i] for i in batch], answers))
            yield from zip(batch, torch.split(logits, [len(answer) for answer in answers]), strict=True)


def measure(
    sensitivity: Sensitivity,
    changes: Sequence[Change],
    order: Sequence[Layer],
    earlier: Mapping[Change, Cost],
    record: Callable[[Cost], None],
    advance: Advance = lambda _: None,
) -> dict[Change, Cost]:
    """Costs of all changes. earlier: of an earlier, interrupted run; record: called with every new one."""
    costs = {}
    for change in changes:
        if change not in earlier:
            cost = sensitivity.cost(change, order)
            record(cost)
            advance(1)
        else:
            cost = earlier[change]
        costs[change] = cost
    return costs
