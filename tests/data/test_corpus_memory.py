"""Large tables: no audio is opened, and memory grows by the texts alone."""

import json
import subprocess
import sys
from pathlib import Path

from .layouts import mustc, tsv

ROWS, LIMIT_MB = 100_000, 150
SEGMENTS, SEGMENTS_LIMIT_MB = 10_000, 25
TIMEOUT = 120  # seconds; a few are enough

MEASURE = """
import json, os, sys
import soundfile
from sordino.data import corpora
from sordino.data.choose import choose
from sordino.data.corpora import covost2, mustc

def refuse(*args, **kwargs):
    raise AssertionError("audio was opened")

soundfile.SoundFile = soundfile.info = soundfile.read = refuse
def peak():  # kB; ru_maxrss would be that of the test's process where it is higher
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

name, path, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
if name == "covost2":
    os.path.isfile = lambda file: True  # 100,000 files would take longer to make than to read
before = peak()
corpus = corpora.load(name, path, "en", "de")
clips = choose(corpus.clips, rows // 2, 0, max_ratio=3.0)
print(json.dumps({"clips": len(corpus.clips), "chosen": len(clips), "problems": len(corpus.problems),
                  "megabytes": (peak() - before) / 1024}))
"""


def measure(name: str, folder: Path, rows: int) -> dict[str, float]:
    words = [sys.executable, "-c", MEASURE, name, str(folder), str(rows)]
    run = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, float] = json.loads(run.stdout)
    return found


def test_covost2_of_100_000_rows(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    rows = (
        f"common_voice_en_{i}.mp3\tThis is the sentence with the number {i}, read aloud by somebody.\t"
        f"Das ist der Satz mit der Nummer {i}, von jemandem vorgelesen.\t{i % 5000:0128d}"
        for i in range(ROWS)
    )
    tsv(tmp_path / "covost_v2.en_de.train.tsv", ["path\tsentence\ttranslation\tclient_id", *rows])
    found = measure("covost2", tmp_path, ROWS)
    assert (found["clips"], found["chosen"], found["problems"]) == (ROWS, ROWS // 2, 0)
    assert 0 < found["megabytes"] < LIMIT_MB, found


def test_mustc_of_10_000_segments(tmp_path: Path) -> None:
    txt = mustc(tmp_path, ("train",)) / "en-de/data/train/txt"
    numbers = range(SEGMENTS)
    tsv(
        txt / "train.yaml", [f"- {{duration: 3.5, offset: {i}.08, speaker_id: spk.0, wav: ted_0.wav}}" for i in numbers]
    )
    tsv(txt / "train.en", [f"This is the sentence with the number {i}, from a talk of some length." for i in numbers])
    tsv(
        txt / "train.de",
        [f"Das ist der Satz mit der Nummer {i}, aus einem Vortrag von einiger Länge." for i in numbers],
    )
    found = measure("mustc", tmp_path, SEGMENTS)
    assert (found["clips"], found["chosen"], found["problems"]) == (SEGMENTS, SEGMENTS // 2, 0)
    assert 0 < found["megabytes"] < SEGMENTS_LIMIT_MB, found
