"""What the random models of several families' `tiny` are made of. For tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def byte_tokenizer(
    special: Sequence[str], eos: str, pad: str, named: Mapping[str, str] | None = None, plain: Sequence[str] = ()
) -> Any:
    """A fast tokenizer of single bytes and added tokens. named: attribute -> special token, e.g. audio_token; plain:
    added tokens that are not special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    backend.add_tokens(list(plain))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=dict(named or {}),
    )


def liven(model: Any, scale: float = 0.15) -> None:
    """Random matrices of this scale: the default 0.02 leaves every prediction nearly the same."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.normal_(0, scale)
