"""How candidates are run: speculatively over a decoder line, or plainly where the family has none."""

from __future__ import annotations

from sordino.models.speech import SpeechModel
from sordino.pruning.plain import PlainDecoder
from sordino.pruning.speculative import SpeculativeDecoder

Engine = SpeculativeDecoder | PlainDecoder


def open_engine(speech: SpeechModel, max_new_tokens: int, memory: int) -> Engine:
    """For the model as it now is. memory: bytes for batches."""
    engine = SpeculativeDecoder if speech.family.decoder.line else PlainDecoder
    return engine(speech, max_new_tokens, memory)
