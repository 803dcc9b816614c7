"""Which tokens a recipe needs: the texts it trains on, its prompt in every language, what the model's configs name.

Shared by `trim`, which keeps them, and the forecast, which counts them. Held-out texts are never asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sordino.config.schema import Recipe
from sordino.data import manifest
from sordino.errors import FamilyError
from sordino.languages import NAMES
from sordino.models import registry
from sordino.models.speech import SpeechModel
from sordino.pipeline.job import DATA, PSEUDO, render_section
from sordino.runtime.progress import Advance
from sordino.vocabulary import trimming
from sordino.vocabulary.trimming import Bpe, Kept

BLOCK = 1000  # texts tokenised between two steps of a bar


def quietly(_: int) -> None:
    """No bar."""


def unloaded(path: str, revision: str | None = None) -> SpeechModel:
    """A model's family and processor, without its weights."""
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


def choose(
    recipe: Recipe, speech: SpeechModel, bpe: Bpe, named: set[int], training: Sequence[str], advance: Advance = quietly
) -> Kept:
    """What the recipe's trim section asks for. named: ids that the model's configs name; training: names of texts."""
    assert recipe.trim
    counts: Counter[int] = Counter()
    for name in training:
        for ids in tokenised(speech, texts(recipe, name), advance):
            counts.update(ids)
    prompts = {i for ids in tokenised(speech, all_prompts(recipe, speech)) for i in ids}
    return trimming.choose(bpe, {*prompts, *speech.stop_ids(), *named}, counts, recipe.trim.tokens)


def training_texts(recipe: Recipe) -> list[str]:
    """Names of the manifests whose translations count: the stated splits and the teacher's."""
    assert recipe.trim
    return [*recipe.trim.splits, *(["pseudo"] if recipe.pseudolabel else [])]


def texts(recipe: Recipe, name: str) -> list[str]:
    """The translations of a split, or the teacher's ('pseudo')."""
    return [clip.target_text for clip in manifest.read(manifest_of(recipe, name)) if clip.target_text]


def manifest_of(recipe: Recipe, name: str) -> Path:
    return recipe.directory / (f"{PSEUDO}/train.jsonl" if name == "pseudo" else f"{DATA}/{name}.jsonl")


def all_prompts(recipe: Recipe, speech: SpeechModel) -> list[str]:
    """The recipe's prompt, rendered; and from and into every language that has a name, since it costs little."""
    pairs = [(recipe.source, recipe.target)]
    pairs += [(recipe.source, code) for code in NAMES] + [(code, recipe.target) for code in NAMES]
    return [render_section(speech, recipe.prompt, source, target) for source, target in dict.fromkeys(pairs)]


def tokenised(speech: SpeechModel, found: Sequence[str], advance: Advance = quietly) -> Iterator[list[int]]:
    """Ids of each text, as training has them: with nothing before or after."""
    for start in range(0, len(found), BLOCK):
        block = list(found[start : start + BLOCK])
        yield from speech.processor.tokenizer(block, add_special_tokens=False)["input_ids"]
        advance(len(block))


def sections(speech: SpeechModel, config: Any) -> tuple[Any, Any]:
    """The config objects that count or name tokens: the whole and the decoder's. The audio encoder's may name some too,
    but of a vocabulary that it had before."""
    return config, registry.sub_config(config, speech.family.stacks["decoder"].config)


def named(found: Sequence[Any]) -> set[int]:
    """Token ids that these configs name."""
    rows = found[-1].vocab_size
    return set().union(*(trimming.named_ids(settings(one), rows) for one in found))


def settings(config: Any) -> dict[str, Any]:
    """A config's own settings with its class's defaults, without those of its sections."""
    return {key: value for key, value in config.to_dict().items() if not isinstance(value, dict)}


def rows_left(recipe: Recipe) -> int | None:
    """Rows after trimming, as far as they are known before: None where the corpus has not been read yet. Before the
    teacher has translated, the few tokens are not counted that only its translations will have."""
    assert recipe.trim
    if recipe.trim.tokens is not None:
        return recipe.trim.tokens
    training = [name for name in training_texts(recipe) if manifest_of(recipe, name).is_file()]
    if not training or registry.is_hub_id(recipe.model):
        return None
    from transformers import AutoConfig

    speech = unloaded(recipe.model)
    named_there = named(sections(speech, AutoConfig.from_pretrained(recipe.model)))
    return len(choose(recipe, speech, bpe_of(speech), named_there, training).rows)
