"""Where a model of a run lies, and how it is opened: here, or by a worker that is told so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.pipeline.device import device_of

if TYPE_CHECKING:
    import torch

    from sordino.models.speech import SpeechModel


@dataclass(frozen=True)
class ModelSource:
    """own_masks: its layers will be run with attention masks of ours, which flash attention does not take.
    encode_batch: clips that its encoder takes at once."""

    path: str
    revision: str | None
    device: str
    dtype: str | torch.dtype
    attention: str | None
    own_masks: bool = False
    encode_batch: int = 1

    def open(self, deferred: bool = False, **options: Any) -> SpeechModel:
        """deferred: its weights are still to be read; options: of `loading.load_checkpoint`, else."""
        from sordino.models import loading

        opener = loading.open_deferred if deferred else loading.load_checkpoint
        speech = opener(
            self.path,
            device=device_of(self.device),
            dtype=self.dtype,
            attention=self.attention,
            revision=self.revision,
            **options,
        )
        speech.encode_batch = self.encode_batch
        if self.own_masks and self.attention == "flash_attention_2":
            speech.model.set_attn_implementation("sdpa")
        return speech
