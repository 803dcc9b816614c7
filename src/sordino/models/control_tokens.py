"""Which parts of a text a tokenizer would not read as text.

`<|im_end|>` in a translation ends the answer in its middle, and `<|AUDIO|>` asks for a clip that is not there.
"""

from __future__ import annotations

from typing import Any


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of a processor's tokenizer that stand for no text."""
    added = getattr(tokenizer, "added_tokens_decoder", None)  # mistral-common's has a method that raises
    special = {number for number, token in added.items() if token.special} if isinstance(added, dict) else set()
    return frozenset({*tokenizer.all_special_ids, *special})


def control_tokens(tokenizer: Any, text: str, control: frozenset[int] | None = None) -> list[str]:
    """Control tokens that encoding the text gives, in order; nothing where the tokenizer spells them out as text.

    tokenizer: a processor's. control: its `control_ids`, where many texts are looked at. Marks that it puts around
    every text do not count.
    """
    control = control_ids(tokenizer) if control is None else control
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [str(tokenizer.convert_ids_to_tokens(number)) for number in ids if number in control]


def spelled_out(tokenizer: Any, text: str) -> list[str]:
    """Control tokens whose names stand in a text that becomes part of a rendered prompt, where all of them count."""
    names = (str(tokenizer.convert_ids_to_tokens(number)) for number in sorted(control_ids(tokenizer)))
    return [name for name in names if name.strip() and name in text]
