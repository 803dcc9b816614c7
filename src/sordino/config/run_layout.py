"""Where everything of a run lies: the stages' directories and the files that others read, named here alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# directories of the stages, in the run
DATA = "10-data"
TEACHER = "20-teacher"
RANKING = "30-ranking"
PRUNED = "40-pruned"
PSEUDO = "50-pseudo"
STUDENT = "60-student"
ADAPTER = "61-adapter"
MERGED = "62-merged"
TRIMMED = "63-trimmed"
QAT = "64-qat"
EXPORT = "70-export"
OUTPUTS = "80-outputs"
SCORES = "85-scores"
REPORT = "90-report"
SWEEP = "95-sweep"
CACHE = "cache"  # may be deleted at any time

# files of the stages
SKIPPED = "skipped.jsonl"  # of the corpus: rows that could not be used
RANKING_FILE = "ranking.json"
TRIALS = "trials.jsonl"  # of the ranking: one line a trial
LOGS = "log*.jsonl"  # of a training; one a removal where every removal was healed
MATCH_LOG = "log-match.jsonl"  # of an encoder that was healed by matching states
KEPT = "kept.json"  # of a pruned model: old indices of its layers
ENGINE = "engine.json"  # of pseudolabel's state: what decoded the rows so far
CANDIDATES, REJECTED = "candidates.jsonl", "rejected.jsonl"  # of the teacher's translations
COVERAGE = "coverage.json"  # of a trimmed vocabulary
CARD = "sordino.json"  # beside every saved model: how it is asked, and in which languages
AUDIT = "audit.json"  # beside every export, written last: what it weighs and loads with
SCORES_FILE, SIZES_FILE, SPEEDS_FILE = "scores.json", "size.json", "speed.json"
PAGE = "report.html"
SWEEP_FILE, SWEEP_PAGE = "sweep.json", "sweep.html"
POINT = "point.json"  # of a sweep's point, written last: what was found out about it


def split_file(split: str) -> str:
    """Manifest of a split (train, select, dev, test, extra), and a system's translations of it."""
    return f"{split}.jsonl"


@dataclass(frozen=True)
class RunLayout:
    """The files of one run. root: its directory."""

    root: Path

    @property
    def cache(self) -> Path:
        return self.root / CACHE

    @property
    def data(self) -> Path:
        return self.root / DATA

    def manifest(self, split: str) -> Path:
        """Clips of a split, as prepare dealt them."""
        return self.data / split_file(split)

    @property
    def pseudo_manifest(self) -> Path:
        """Training clips with the teacher's translations."""
        return self.root / PSEUDO / split_file("train")

    @property
    def ranking(self) -> Path:
        return self.root / RANKING / RANKING_FILE

    @property
    def trials(self) -> Path:
        return self.root / RANKING / TRIALS

    @property
    def outputs(self) -> Path:
        return self.root / OUTPUTS

    def hypotheses(self, key: str, split: str) -> Path:
        """A system's translations."""
        return self.outputs / key / split_file(split)

    def speed(self, key: str) -> Path:
        """How fast a system translated."""
        return self.outputs / key / SPEEDS_FILE

    @property
    def scores(self) -> Path:
        """Of every system."""
        return self.root / SCORES / SCORES_FILE

    @property
    def sizes(self) -> Path:
        """Of every system."""
        return self.root / SCORES / SIZES_FILE

    @property
    def speeds(self) -> Path:
        """Of every system."""
        return self.root / SCORES / SPEEDS_FILE

    def audit(self, form: str) -> Path:
        """Of an export in a format."""
        return self.root / EXPORT / form / AUDIT
