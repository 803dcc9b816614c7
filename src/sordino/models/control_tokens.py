"""Which parts of a text a tokenizer would not read as text.

`<|im_end|>` in a translation ends the answer in its middle, and `<|AUDIO|>` asks for a clip that is not there.
"""

from __future__ import annotations

from typing import Any


def control_tokens(tokenizer: Any, text: str) -> list[str]:
    """Control tokens that encoding the text gives, in order; nothing where the tokenizer spells them out as text.

    tokenizer: a processor's. Marks that it puts around every text do not count.
    """
    special = set(tokenizer.all_special_ids)
    added = getattr(tokenizer, "added_tokens_decoder", None)  # mistral-common's has a method that raises
    special |= {number for number, token in added.items() if token.special} if isinstance(added, dict) else set()
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [str(tokenizer.convert_ids_to_tokens(number)) for number in ids if number in special]
