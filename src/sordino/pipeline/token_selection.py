"""Which tokens a recipe needs: the texts it trains on, its prompt in every language, what the model's configs name.

Shared by `trim`, which keeps them, and the forecast, which counts them. Held-out texts are never asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.config.run_layout import RunLayout
from sordino.config.schema import Recipe
from sordino.data import manifest
from sordino.languages import NAMES
from sordino.models import prompts, registry
from sordino.vocabulary import trimming
from sordino.vocabulary.tokenizer import bpe_of, named_ids, quietly, token_configs, tokenized, without_weights
from sordino.vocabulary.trimming import Bpe, Kept

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel

PSEUDO = "pseudo"  # the teacher's translations, among the names of texts


def choose(
    recipe: Recipe,
    speech: SpeechModel,
    bpe: Bpe,
    named: set[int],
    training: Sequence[str],
    advance: Callable[[int], None] = quietly,
) -> Kept:
    """What the recipe's trim section asks for. named: ids that the model's configs name; training: names of texts."""
    assert recipe.trim
    counts: Counter[int] = Counter()
    for name in training:
        for ids in tokenized(speech, texts(recipe, name), advance):
            counts.update(ids)
    asked = {i for ids in tokenized(speech, all_prompts(recipe, speech)) for i in ids}
    return trimming.choose(bpe, {*asked, *speech.stop_ids(), *named}, counts, recipe.trim.tokens)


def training_texts(recipe: Recipe) -> list[str]:
    """Names of the manifests whose translations count: the stated splits and the teacher's."""
    assert recipe.trim
    return [*recipe.trim.splits, *([PSEUDO] if recipe.pseudolabel else [])]


def texts(recipe: Recipe, name: str) -> list[str]:
    """The translations of a split, or the teacher's (PSEUDO)."""
    return [clip.target_text for clip in manifest.read(manifest_of(recipe, name)) if clip.target_text]


def manifest_of(recipe: Recipe, name: str) -> Path:
    layout = RunLayout(recipe.directory)
    return layout.pseudo_manifest if name == PSEUDO else layout.manifest(name)


def all_prompts(recipe: Recipe, speech: SpeechModel) -> list[str]:
    """The recipe's prompt, rendered; and from and into every language that has a name, since it costs little."""
    pairs = [(recipe.source, recipe.target)]
    pairs += [(recipe.source, code) for code in NAMES] + [(code, recipe.target) for code in NAMES]
    return [prompts.render(speech, recipe.prompt, source, target) for source, target in dict.fromkeys(pairs)]


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

    speech = without_weights(recipe.model)
    config = speech.family.core(AutoConfig.from_pretrained(recipe.model))
    return len(choose(recipe, speech, bpe_of(speech), named_ids(token_configs(speech, config)), training).rows)
