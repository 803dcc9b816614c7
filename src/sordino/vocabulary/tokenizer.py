"""A model's tokenizer and the token ids that its configs name, without the model's weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sordino.errors import FamilyError
from sordino.models import registry
from sordino.vocabulary import trimming
from sordino.vocabulary.trimming import Bpe

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel

BLOCK = 1000  # texts tokenized between two steps of a bar


def quietly(_: int) -> None:
    """No bar."""


def without_weights(path: str, revision: str | None = None) -> SpeechModel:
    """A model's family and processor alone."""
    from sordino.models.speech import SpeechModel

    family = registry.family_of(path, revision)
    return SpeechModel(family, None, registry.load_processor(family, path, revision), path)


def bpe_of(speech: SpeechModel) -> Bpe:
    """Raises FamilyError for a tokenizer that is no byte-level BPE in tokenizer.json's form."""
    backend = getattr(speech.processor.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise FamilyError(
            f"the tokenizer of {speech.path} is of its own kind, and no tokenizer.json describes it: its vocabulary "
            "cannot be trimmed.",
            "Leave trim: out.",
        )
    return Bpe(json.loads(backend.to_str()))


def tokenized(
    speech: SpeechModel, texts: Sequence[str], advance: Callable[[int], None] = quietly
) -> Iterator[list[int]]:
    """Ids of each text, as training has them: with nothing before or after."""
    for start in range(0, len(texts), BLOCK):
        block = list(texts[start : start + BLOCK])
        yield from speech.processor.tokenizer(block, add_special_tokens=False)["input_ids"]
        advance(len(block))


def token_configs(speech: SpeechModel, config: Any) -> tuple[Any, Any]:
    """The config objects that count or name tokens: the whole and the decoder's. The audio encoder's may name some too,
    but of a vocabulary that it had before."""
    return config, registry.sub_config(config, speech.family.stacks["decoder"].config)


def named_ids(configs: Sequence[Any]) -> set[int]:
    """Token ids that these configs name."""
    rows = configs[-1].vocab_size
    return set().union(*(trimming.named_ids(own_settings(config), rows) for config in configs))


def own_settings(config: Any) -> dict[str, Any]:
    """A config's own settings with its class's defaults, without those of its sections."""
    return {key: value for key, value in config.to_dict().items() if not isinstance(value, dict)}
