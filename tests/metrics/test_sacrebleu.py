"""sacreBLEU's private functions, which we call for speed, give the scores of its public ones.

pyproject.toml bounds sacreBLEU's version for them: raise the bound when these pass with the next one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from sordino.metrics import mbr, registry

WORDS = {
    "de": ["Wir", "entfernen", "die", "Schichten,", "24", "von", "32;", "(nicht", "alle)", "»GPT-4«", "Straße", "."],
    "zh": ["我们", "移除", "了", "层，", "24", "个", "GPT-4", "模型。", "（不", "是）", "全部", "？"],
}
TOKENIZERS = {"de": "13a", "zh": "zh"}
CLIPS = 40


def texts(language: str) -> tuple[list[str], list[str]]:
    """Seeded translations and references: some equal, some of one word, one empty."""
    rng = np.random.default_rng(11)
    space = "" if language == "zh" else " "
    references, hypotheses = [], []
    for clip in range(CLIPS):
        words = rng.choice(WORDS[language], size=1 + clip % 9)
        references.append(space.join(words))
        hypotheses.append(space.join(word for word in words if clip % 5 == 0 or rng.random() > 0.3))
    assert "" in hypotheses
    return hypotheses, references


def public(metric: str, language: str, *, sentence: bool) -> Any:
    if metric == "bleu":
        return BLEU(tokenize=TOKENIZERS[language], effective_order=sentence)
    return CHRF(word_order=2 if metric == "chrf++" else 0)


@pytest.mark.parametrize("language", TOKENIZERS)
@pytest.mark.parametrize("metric", ["bleu", "chrf", "chrf++"])
def test_private_functions_give_the_public_scores(metric: str, language: str) -> None:
    hypotheses, references = texts(language)
    corpus = public(metric, language, sentence=False).corpus_score(hypotheses, [references]).score
    one = public(metric, language, sentence=True)
    sentences = [one.sentence_score(text, [ref]).score for text, ref in zip(hypotheses, references, strict=True)]
    score = registry.get(metric).score(hypotheses, references, language, bootstrap=0)
    assert 10 < corpus < 90
    assert score.value == corpus
    assert score.segments == tuple(sentences)
    assert len(set(sentences)) > CLIPS / 2
    resampled, _ = registry.get(metric).resampled(hypotheses, references, language, count=1, seed=0)  # type: ignore[attr-defined]
    assert resampled == corpus


@pytest.mark.parametrize("language", TOKENIZERS)
def test_private_functions_give_the_public_utilities(language: str) -> None:
    """Of two texts, each one's utility is its sentence chrF against the other."""
    chrf = CHRF()
    for one, other in zip(*texts(language), strict=True):
        if one != other:
            expected = [chrf.sentence_score(one, [other]).score, chrf.sentence_score(other, [one]).score]
            assert mbr.utilities([one, other]) == expected
