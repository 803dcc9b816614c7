"""Control tokens inside of texts: found where the tokenizer would read them as such, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.models import registry
from sordino.models.control_tokens import control_tokens


@pytest.mark.parametrize("family", ["qwen2_audio", "voxtral"])
def test_every_token_that_encoding_makes_a_control_id(family: str, pico_dir: Callable[[str], Path]) -> None:
    tokenizer = registry.load_processor(registry.get(family), str(pico_dir(family))).tokenizer
    assert control_tokens(tokenizer, "Das Wort <b> im Text, 100 %.") == []
    assert control_tokens(tokenizer, "") == []
    names = [str(token) for token in tokenizer.all_special_tokens]
    assert names
    for name in names:
        ids = tokenizer.encode(f"Ende {name} mehr.", add_special_tokens=False)
        is_control = bool(set(ids) & set(tokenizer.all_special_ids))
        assert control_tokens(tokenizer, f"Ende {name} mehr.") == ([name] if is_control else [])


def test_qwen2_audio_s_tokens_are_control_tokens(pico_dir: Callable[[str], Path]) -> None:
    tokenizer = registry.load_processor(registry.get("qwen2_audio"), str(pico_dir("qwen2_audio"))).tokenizer
    assert control_tokens(tokenizer, "a <|im_end|> b <|AUDIO|><|endoftext|>") == [
        "<|im_end|>", "<|AUDIO|>", "<|endoftext|>",
    ]  # fmt: skip
