"""The paired tests print sacreBLEU's own p-values."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from sordino.errors import DataError
from sordino.metrics import paired

RESAMPLES = 200


@pytest.fixture(scope="module")
def texts():
    """(references, baseline, a slightly worse system) of thirty made-up segments."""
    rng = np.random.default_rng(1)
    words = np.array([f"wort{index}" for index in range(60)])
    references = [" ".join(rng.choice(words, size=12)) for _ in range(30)]

    def noisy(rate):
        return [" ".join(w if rng.random() > rate else str(rng.choice(words)) for w in t.split()) for t in references]

    return references, noisy(0.3), noisy(0.35)


@pytest.mark.parametrize("metric", ["bleu", "chrf++"])
def test_p_values_are_those_of_the_command_line(metric, texts, tmp_path):
    references, baseline, system = texts
    for name, lines in (("ref", references), ("base", baseline), ("sys", system)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found = paired.compare(metric, baseline, system, references, "de", RESAMPLES)
    options = {"bleu": ["bleu"], "chrf++": ["chrf", "--chrf-word-order", "2"]}[metric]
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "base", "sys", "-m", *options, "-f", "text"]
    tests = {"bs": (found.bootstrap_p, RESAMPLES), "ar": (found.randomisation_p, 10 * RESAMPLES)}
    for test, (p, trials) in tests.items():
        asked = [*command, f"--paired-{test}", f"--paired-{test}-n", str(trials)]
        printed = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert re.findall(r"p = ([0-9.]+)", printed) == [f"{p:.4f}"]


def test_no_difference_and_a_large_one(texts, monkeypatch):
    references, baseline, _ = texts
    same = paired.compare("chrf", baseline, list(baseline), references, "de", RESAMPLES)
    assert (same.bootstrap_p, same.randomisation_p, same.significant) == (1.0, 1.0, False)
    far = paired.compare("chrf", baseline, ["nichts"] * 30, references, "de", RESAMPLES)
    assert far.significant and far.bootstrap_p == 1 / (RESAMPLES + 1)
    monkeypatch.setenv("SACREBLEU_SEED", "7")  # changes nothing here
    assert paired.compare("chrf", baseline, ["nichts"] * 30, references, "de", RESAMPLES) == far
    assert far.signature.endswith("|bs:200|ar:2000|seed:12345")
    assert not paired.Paired(0.01, 0.06, "").significant


def test_what_can_be_tested():
    assert [paired.testable(name) for name in ("bleu", "chrf", "chrf++", "comet")] == [True, True, True, False]
    with pytest.raises(DataError, match=r"2 translations .* 1 references"):
        paired.compare("chrf", ["a", "b"], ["a"], ["a"], "de")
