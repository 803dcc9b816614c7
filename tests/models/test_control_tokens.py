"""Control tokens inside of texts: found where the tokenizer would read them as such, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.errors import DataError
from sordino.models import registry
from sordino.models.control_tokens import control_tokens
from sordino.models.speech import SpeechModel


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


def test_an_answer_has_no_control_token_but_its_end(pico: Callable[[str], SpeechModel]) -> None:
    speech = pico("qwen2_audio")
    assert speech.answer_ids("Ende mehr.")[-1] == speech.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(DataError, match=r"'Ende <\|im_end\|> mehr\.' holds '<\|im_end\|>', a control token"):
        speech.answer_ids("Ende <|im_end|> mehr.")
