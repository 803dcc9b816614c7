"""Criteria of layer importance. Each says how well the model does without a layer, or how much a layer does.

Translation criteria (chrF, chrF++, BLEU) decode; loss and KL read one teacher-forced pass, influence and angular the
prompt's states alone. Those give one value per clip and a weight, so that a resample of the clips can be scored again.

| criterion | better | source |
|---|---|---|
| chrf, chrf++, bleu | high | Popovic 2015, 2017; Papineni et al. 2002; as a layer criterion Moslem 2025 |
| loss | low | cross-entropy of the reference translation, nats a token |
| kl | low | Kullback-Leibler divergence from the unpruned model's predictions, nats a token |
| influence | low | block influence, ShortGPT (Men et al. 2024): 1 - cosine of a layer's input and output |
| angular | low | angular distance (Gromov et al. 2024): arccos of that cosine over pi, at the prompt's last token |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TRANSLATION = ("bleu", "chrf", "chrf++")
FORCED = ("loss", "kl")
STATES = ("influence", "angular")


def higher_is_better(criterion: str) -> bool:
    """Whether the layer to remove is the one whose removal scores highest."""
    return criterion in TRANSLATION


def loss(logits: Tensor, answer: Tensor) -> float:
    """Cross-entropy of one answer, summed over its tokens, in nats. logits (n, V), answer (n,)."""
    return float(nn.functional.cross_entropy(logits, answer, reduction="sum"))


def kl(logits: Tensor, unpruned: Tensor) -> float:
    """KL(unpruned || candidate), summed over an answer's positions, in nats. Both (n, V)."""
    return float(
        nn.functional.kl_div(logits.log_softmax(-1), unpruned.log_softmax(-1), reduction="sum", log_target=True)
    )


def influence(before: Tensor, after: Tensor, valid: Tensor) -> Tensor:
    """Block influence, summed over each clip's valid positions: (B, S, H) twice, (B, S) -> (B,)."""
    cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return ((1 - cosine) * valid).sum(-1)


def angular(before: Tensor, after: Tensor) -> Tensor:
    """Angular distance at the last position, 0 to 1: (B, S, H) twice -> (B,)."""
    cosine = nn.functional.cosine_similarity(before[:, -1].float(), after[:, -1].float(), dim=-1)
    return torch.arccos(cosine.clamp(-1, 1)) / math.pi
