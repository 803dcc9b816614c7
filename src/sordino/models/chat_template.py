"""The system turn that a saved chat template begins a conversation with that brings none. No torch.

Who uses a model with stock transformers asks without knowing how it was trained. sordino itself reads templates without
this turn, so that a prompt without a system turn stays one.
"""

from __future__ import annotations

import json
import re
from typing import Any

FILE = "chat_template.jinja"
OLDER_FILE = "chat_template.json"  # of the same, which transformers read once
# put before a template; the comment is how it is found again
DEFAULT_TURN = (
    "{#- sordino: the system turn of a conversation that brings none -#}"
    "{%%- if messages and messages[0]['role'] != 'system' -%%}"
    "{%%- set messages = [{'role': 'system', 'content': %s}] + messages -%%}"
    "{%%- endif %%}"
)
# spaces that a template begins with are rendered as before behind a line end, which itself is not (trim_blocks)
OURS = re.compile(r"^\{#- sordino: .*?-#\}.*?\{%- endif %\}(?:\n(?=\s))?", re.DOTALL)


def with_default(template: str, turn: Any) -> str:
    """turn: content of the system turn, a text or a list of parts; none where it is empty."""
    plain = without_default(template)
    if not turn:
        return plain
    return DEFAULT_TURN % json.dumps(turn, ensure_ascii=False) + "\n" * plain[:1].isspace() + plain


def without_default(template: str) -> str:
    return OURS.sub("", template)


def of(processor: Any) -> str | None:
    """A loaded processor's template, or its tokenizer's; None where there is none, or several by name."""
    for holder in (processor, getattr(processor, "tokenizer", None)):
        template = getattr(holder, "chat_template", None)
        if template is not None:
            return template if isinstance(template, str) else None
    return None


def drop_default(processor: Any) -> None:
    """Let a loaded processor render without the default turn."""
    holders: tuple[Any, ...] = (processor, getattr(processor, "tokenizer", None))
    for holder in holders:
        template = getattr(holder, "chat_template", None)
        if isinstance(template, str) and OURS.match(template):
            holder.chat_template = without_default(template)
