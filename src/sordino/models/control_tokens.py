"""Which parts of a text a tokenizer would not read as text.

`<|im_end|>` in a translation ends the answer in its middle, and `<|AUDIO|>` asks for a clip that is not there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sordino.errors import DataError
from sordino.runtime.terminal import quoted


def control_tokens(tokenizer: Any, text: str) -> list[str]:
    """Control tokens that encoding the text gives, in order; nothing where the tokenizer spells them out as text.

    tokenizer: a processor's. Marks that it puts around every text do not count.
    """
    return _named(tokenizer, tokenizer.encode(text, add_special_tokens=False))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text. Raises DataError where a control token is among them."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    tokens = _named(tokenizer, ids)
    if tokens:
        problem = f"the text {quoted(text, 80)} holds {quoted(tokens[0], 60)}, a control token of this model."
        raise DataError(problem, "Remove it from the text, or leave the clip out.")
    return ids


def _named(tokenizer: Any, ids: list[int]) -> list[str]:
    special = _special_ids(tokenizer)
    return [str(tokenizer.convert_ids_to_tokens(number)) for number in ids if number in special]


@lru_cache(maxsize=4)  # of thousands of tokens, asked for with every text
def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", None)  # mistral-common's has a method that raises
    special = [number for number, token in added.items() if token.special] if isinstance(added, dict) else []
    return frozenset([*tokenizer.all_special_ids, *special])
