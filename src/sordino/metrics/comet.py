"""COMET: the learned metric of Rei et al. (2020), from source, translation and reference.

`comet` computes in float32, as the original's Python interface does. `comet-half` computes in float16, as its
command line `comet-score` does since 2.2.4: choose it to repeat printed digits. Both take a model after a colon:
a directory, a .ckpt file or a Hub name (`comet:wmt20-comet-da`); the default is wmt22-comet-da.

COMET rewards text copied from the source; read it beside chrF and the `untranslated` count of the output health.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sordino.errors import DataError
from sordino.metrics.base import BOOTSTRAP, COVERAGE, Score, check_pairs
from sordino.metrics.comet_files import locate
from sordino.metrics.overlap import resamples
from sordino.runtime.progress import bar, note

DEFAULT_MODEL = "wmt22-comet-da"


@lru_cache(maxsize=2)
def _load(model: str, half: bool, device: str) -> tuple[Any, str]:
    """(the model, the part of the signature that names it): loaded once for all systems of a table."""
    from sordino.metrics import comet_model

    files = locate(model)
    network = comet_model.load(files, half=half, device=device)
    return network, f"comet:{files.name}|rev:{files.revision}|native|dtype:{'float16' if half else 'float32'}"


@dataclass(frozen=True)
class Comet:
    """One checkpoint in one precision. Scores are means over segments, about 0 to 1, higher is better."""

    name: str
    model: str = DEFAULT_MODEL
    half: bool = False
    device: str = "auto"
    higher_is_better: bool = True
    decimals: int = 4
    is_mean: bool = True
    needs_sources: bool = True

    @property
    def label(self) -> str:
        parts = self.model.rstrip("/").split("/")
        short = parts[-3] if parts[-1].endswith(".ckpt") and len(parts) > 2 else parts[-1]
        name = "COMET fp16" if self.half else "COMET"
        return name if self.model == DEFAULT_MODEL else f"{name} {short}"

    def of(self, model: str, device: str) -> Comet:
        """The same metric with another checkpoint ('': the same one) on a device."""
        return dataclasses.replace(self, model=model or self.model, device=device)

    def corpus(
        self,
        hypotheses: Sequence[str],
        references: Sequence[str],
        target_lang: str,
        sources: Sequence[str | None] | None = None,
    ) -> float:
        """Mean segment score. Raises DataError as `score` does."""
        return self.score(hypotheses, references, target_lang, sources=sources, bootstrap=0).value

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
        """Mean and segment scores, and the mean's 95 % bootstrap interval (Koehn, 2004).

        Raises DataError where lengths differ, a reference or a source text is missing, or the model cannot be had.
        """
        check_pairs(hypotheses, references)
        texts = _sources(sources, len(hypotheses), self.name)
        model, signature = _load(self.model, self.half, _device(self.device))
        values = self._segments(model, texts, list(hypotheses), list(references))
        value = sum(values) / len(values)
        interval = None
        if bootstrap:
            row = np.array(values)
            means = [row[drawn].mean() for drawn in resamples(len(values), bootstrap, seed)]
            low, high = np.percentile(means, [(100 - COVERAGE) / 2, (100 + COVERAGE) / 2])
            interval = (float(low), float(high))
            signature += f"|bs:{bootstrap}|seed:{seed}"
        return Score(self.name, value, signature, interval, tuple(values))

    def _segments(self, model: Any, sources: list[str], hypotheses: list[str], references: list[str]) -> list[float]:
        """Segment scores in the order given, computed in the original's batches."""
        scores = [0.0] * len(hypotheses)
        before = len(model.cut)
        with bar(f"scoring with {self.label}", len(hypotheses)) as advance:
            for batch in _batches(sources):
                columns = [[column[i].strip() for i in batch] for column in (sources, hypotheses, references)]
                for index, value in zip(batch, model.score(*columns), strict=True):
                    if not math.isfinite(value):
                        problem = f"{self.label} gives segment {index + 1} a score that is no number."
                        raise DataError(
                            problem, "Its weights are damaged, or too large for float16: download it again."
                        )
                    scores[index] = value
                advance(len(batch))
        if len(model.cut) > before:
            note(f"  {len(model.cut) - before} texts are longer than COMET's encoder takes and were cut, as COMET does")
        return scores


def _batches(sources: Sequence[str]) -> Iterator[list[int]]:
    from sordino.metrics.comet_model import BATCH

    order = np.argsort([len(text.strip()) for text in sources], kind="stable").tolist()
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def _sources(sources: Sequence[str | None] | None, count: int, name: str) -> list[str]:
    remedy = "Give the clips a source_text in the manifest, or a file with --sources; or leave the metric out."
    if sources is None:
        raise DataError(f"{name} needs the source texts.", remedy)
    if len(sources) != count:
        raise DataError(f"{count} translations cannot be scored with {len(sources)} source texts.", remedy)
    missing = [index for index, text in enumerate(sources) if text is None or not text.strip()]
    if missing:
        raise DataError(
            f"{name} needs source_text: {len(missing)} of {count} clips lack it, first {missing[0]}.", remedy
        )
    return [text for text in sources if text is not None]


def _device(device: str) -> str:
    from sordino.models.devices import default_device

    return str(default_device(device))


COMET = Comet("comet")
COMET_HALF = Comet("comet-half", half=True)
