"""How often do two halves of the select clips choose the same layer? From the trials of a finished ranking.

    python benchmarks/halves.py RUN [--sizes 12 25 50] [--draws 500]

Every round is decided anew on two disjoint random samples of n clips, by the trials that the ranking kept; the layers
that are out already are those of all clips, since no other trials are there. `same`: both samples choose the same
layer; `all`: a sample chooses what all clips chose; `of candidates`: what chance would agree on. A race that scored
some candidates on part of the clips is refused. Only the exact search keeps every candidate on every clip.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.config.run_layout import RunLayout
from sordino.data import manifest
from sordino.metrics import registry
from sordino.metrics.overlap import Overlap
from sordino.pruning import criteria
from sordino.pruning.ranking import Ranking
from sordino.pruning.search import Trial
from sordino.runtime import files

Scores = Any  # (counts of the clips of one candidate, summed) -> score, the higher the better


def rounds_of(run: Path) -> tuple[Ranking, list[list[Trial]]]:
    """Trials of every round, on all clips."""
    layout = RunLayout(run)
    ranking = Ranking.read(layout.ranking)
    trials = [Trial.from_json(row) for row in files.read_jsonl(layout.trials)]
    searched = [trial for trial in trials if trial.round > 0 and trial.without is None]
    if len({trial.clips for trial in searched}) != 1:
        sys.exit(f"{layout.trials}: some candidates were scored on part of the clips; rank with rank.search=exact.")
    numbers = sorted({trial.round for trial in searched})
    return ranking, [[trial for trial in searched if trial.round == number] for number in numbers]


def statistics(run: Path, ranking: Ranking, trials: list[Trial]) -> tuple[NDArray[Any], Scores]:
    """Of a round: (candidates, clips, counts), and what scores a sum of counts over clips."""
    assert ranking.criterion
    if ranking.criterion not in criteria.TRANSLATION:
        values = np.array([trial.values for trial in trials])[:, :, None]
        sign = 1 if criteria.higher_is_better(ranking.criterion) else -1
        return values, lambda counts: sign * float(counts[0])
    metric = registry.get(ranking.criterion)
    assert isinstance(metric, Overlap)
    clips = manifest.read(RunLayout(run).manifest("select"))[: trials[0].clips]
    scorer = metric.scorer([clip.target_text or "" for clip in clips], clips[0].target_lang)
    counts = [scorer._extract_corpus_statistics(list(trial.hypotheses or ()), None) for trial in trials]
    return np.array(counts), lambda row: scorer._compute_score_from_stats(row.tolist()).score


def winner(counts: NDArray[Any], score: Scores, sample: NDArray[np.int64]) -> int:
    scores = [score(row) for row in counts[:, sample].sum(1)]
    return scores.index(max(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[12, 25, 50])
    parser.add_argument("--draws", type=int, default=500)
    options = parser.parse_args()
    ranking, rounds = rounds_of(options.run)
    path = ranking.searched or ranking.order
    print(f"{rounds[0][0].clips} select clips, {ranking.criterion}, {options.draws} draws")
    table: dict[int, list[tuple[float, float]]] = {size: [] for size in options.sizes}
    for number, trials in enumerate(rounds):
        counts, score = statistics(options.run, ranking, trials)
        layers = [trial.layer for trial in trials]
        rng = np.random.default_rng(0)
        for size in options.sizes:
            if 2 * size > counts.shape[1]:
                sys.exit(f"two samples of {size} need {2 * size} clips, and there are {counts.shape[1]}.")
            same = right = 0
            for _ in range(options.draws):
                order = rng.permutation(counts.shape[1])
                first, second = (winner(counts, score, order[at : at + size]) for at in (0, size))
                same += first == second
                right += layers[first] == path[number]
            table[size].append((same / options.draws, right / options.draws))
        shown = "; ".join(f"{size} clips: same {same:.0%}, all {right:.0%}" for size, (same, right) in
                          ((size, table[size][-1]) for size in options.sizes))  # fmt: skip
        print(f"round {number + 1}, {path[number]} of {len(layers)} candidates ({1 / len(layers):.0%}): {shown}")
    means = {size: np.mean(rows, axis=0) for size, rows in table.items()}
    print("mean: " + "; ".join(f"{size} clips: same {m[0]:.0%}, all {m[1]:.0%}" for size, m in means.items()))


if __name__ == "__main__":
    main()
