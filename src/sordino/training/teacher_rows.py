"""A teacher's probabilities on disk: those of its likeliest tokens at every answer position.

One safetensors file holds the positions of many answers, one answer after the other: ids (n, k) int32, and logs
(n, k + 1) float16, the last of all other tokens together (bytes: predict.position_bytes). In 16 bits a
log-probability is wrong by a thousandth of itself at most; what is read is scaled to sum to one again.
The file carries a hash of its tensors, so that damage is found before training starts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sordino.errors import ArtifactError
from sordino.models.answers import AnswerBatch, Probabilities, SpeechLM

DIGEST = "sha256"  # of the tensors, in the file's header


@dataclass(frozen=True)
class StoredRows:
    """The positions of one answer in a file."""

    file: Path
    first: int
    count: int

    def read(self) -> Probabilities:
        """Raises ArtifactError where the file is gone or damaged."""
        try:
            with safe_open(self.file, "pt") as stored:
                part = slice(self.first, self.first + self.count)
                return Probabilities(stored.get_slice("ids")[part], stored.get_slice("logs")[part])
        except (OSError, SafetensorError) as error:
            raise damaged(self.file, error) from None


def joined(rows: Sequence[StoredRows], device: torch.device) -> Probabilities:
    """Of several answers, one after the other, each position's probabilities summing to one: int64 and float32."""
    parts = [one.read() for one in rows]
    ids, logs = torch.cat([part.ids for part in parts]), torch.cat([part.logs for part in parts])
    return Probabilities(ids.to(device, torch.int64), logs.to(device).float().log_softmax(-1))


def likeliest(logits: Tensor, top: int, suppressed: Sequence[int] = ()) -> Probabilities:
    """logits (K, V) -> the likeliest k = min(top, V) tokens of each position, the first the likeliest.

    suppressed: ids that are never chosen when the teacher translates; they have no probability here either.
    """
    if suppressed:
        logits = logits.index_fill(-1, torch.tensor(suppressed, device=logits.device), -torch.inf)
    chosen = logits.topk(min(top, logits.shape[-1]), -1)
    others = logits.scatter(-1, chosen.indices, -torch.inf).logsumexp(-1, keepdim=True)
    classes = torch.cat([chosen.values, others], -1)
    return Probabilities(chosen.indices, classes.log_softmax(-1))


@torch.no_grad()
def of_batch(model: SpeechLM, batch: AnswerBatch, top: int, chunk: int) -> Probabilities:
    """The teacher's at the answer positions of a batch, as they are stored; logits of `chunk` positions at once."""
    hidden, suppressed = model.hidden(batch), model.speech.suppressed_ids()
    parts = [likeliest(model.logits(rows), top, suppressed) for rows in torch.split(hidden, chunk)]
    ids = torch.cat([part.ids for part in parts]).to("cpu", torch.int32)
    return Probabilities(ids, torch.cat([part.logs for part in parts]).to("cpu", torch.float16))


def store(rows: Probabilities, file: Path) -> None:
    """Write beside, flush, rename: a file of this name is whole."""
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    tensors = {"ids": rows.ids.contiguous(), "logs": rows.logs.contiguous()}
    try:
        save_file(tensors, beside, metadata={DIGEST: _digest(tensors["ids"], tensors["logs"])})
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def check(file: Path, positions: int, top: int) -> None:
    """Raise ArtifactError for a file that does not hold so many positions of `top` tokens as they were written."""
    try:
        with safe_open(file, "pt") as stored:
            expected = (stored.metadata() or {}).get(DIGEST)
            ids, logs = stored.get_tensor("ids"), stored.get_tensor("logs")
    except (OSError, SafetensorError) as error:
        raise damaged(file, error) from None
    if ids.shape != (positions, top) or logs.shape != (positions, top + 1):
        raise damaged(file, f"it holds {tuple(ids.shape)} ids, not {(positions, top)}")
    if _digest(ids, logs) != expected:
        raise damaged(file, "its contents are not what was written")


def damaged(file: Path, what: object) -> ArtifactError:
    return ArtifactError(
        f"{file}, the teacher's probabilities, cannot be used: {what}.",
        "Delete it and run the same command again: that file alone is made anew.",
    )


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
