"""Is a system's score different from the teacher's, or would other clips have said the opposite?

Two tests on the same segments, both by sacreBLEU's own implementation and with its seed, so that its command line
(`sacrebleu --paired-bs`, `--paired-ar`) prints the same p-values: the paired bootstrap (Koehn, 2004) draws the
segments anew and asks how often the difference strays from its mean by more than the one observed; approximate
randomisation (Riezler & Maxwell, 2005) swaps the two systems' outputs segment by segment and asks how often chance
alone makes a difference as large. Both p-values are two-sided. Neither corrects for the number of systems compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sacrebleu.significance import PairedTest

from sordino.metrics import registry
from sordino.metrics.base import BOOTSTRAP, check_pairs
from sordino.metrics.overlap import Overlap

SHUFFLES = 10  # randomisation trials per bootstrap resample: sacreBLEU's 10,000 and 1,000
SEED = 12345  # sacreBLEU's own; with 0 it would draw another one each time
LEVEL = 0.05  # p-values below are marked in tables
TESTS = {"bootstrap": "bs", "randomisation": "ar"}


@dataclass(frozen=True)
class Paired:
    """Two-sided p-values of one metric for one pair of systems, and what repeats them."""

    bootstrap_p: float
    randomisation_p: float
    signature: str

    @property
    def significant(self) -> bool:
        """Both tests are below 0.05."""
        return max(self.bootstrap_p, self.randomisation_p) < LEVEL

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def testable(metric: str) -> bool:
    """Whether the metric is one of sacreBLEU's."""
    return isinstance(registry.get(metric), Overlap)


def compare(
    metric: str,
    baseline: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str,
    resamples: int = BOOTSTRAP,
) -> Paired:
    """Test `hypotheses` against `baseline`, segment by segment. Raises DataError as `check_pairs` does.

    Equal outputs have p = 1: sacreBLEU would give 1 / (trials + 1), since no trial differs by more than nothing.
    """
    check_pairs(baseline, references)
    check_pairs(hypotheses, references)
    overlap = registry.get(metric)
    assert isinstance(overlap, Overlap), metric
    scorer = overlap.scorer(references, target_lang)
    trials = {"bootstrap": resamples, "randomisation": SHUFFLES * resamples}
    signature = f"{scorer.get_signature().format()}|bs:{resamples}|ar:{SHUFFLES * resamples}|seed:{SEED}"
    if list(baseline) == list(hypotheses):
        return Paired(1.0, 1.0, signature)
    p_values = {}
    for test, code in TESTS.items():
        named = [("baseline", list(baseline)), ("system", list(hypotheses))]
        paired = PairedTest(named, {metric: scorer}, None, test_type=code, n_samples=trials[test])
        paired._seed = SEED  # whatever SACREBLEU_SEED says
        _, results = paired()
        (scores,) = (row for name, row in results.items() if name != "System")
        p_values[test] = float(scores[1].p_value)
    return Paired(p_values["bootstrap"], p_values["randomisation"], signature)
