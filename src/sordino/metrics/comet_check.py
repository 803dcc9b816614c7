"""The native COMET against the original one: `--comet-check` of `sordino evaluate` and `sordino score`.

`unbabel-comet` needs transformers 4 and numpy 1, so it gets an environment of its own, made on request from the
pinned comet_requirements.txt (1.4 GB, about two minutes, kept for the next time). It scores the same texts with the
same checkpoint file, `comet` through its Python interface and `comet-half` through its command `comet-score`, and
every segment must agree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sordino.errors import DataError
from sordino.metrics.comet import Comet
from sordino.metrics.comet_files import CHECKPOINT, SETTINGS, Files, locate
from sordino.runtime.progress import note

TOLERANCE = 1e-5
REQUIREMENTS = "comet_requirements.txt"
READY = ".sordino-installed"  # holds the requirements that are installed
FLOAT32 = """
import json, sys
from comet import load_from_checkpoint
model = load_from_checkpoint(sys.argv[1])
job = json.load(open(sys.argv[2], encoding="utf-8"))
columns = [[text.strip() for text in job[key]] for key in ("src", "mt", "ref")]
samples = [dict(zip(("src", "mt", "ref"), row)) for row in zip(*columns)]
scores = model.predict(samples, batch_size=16, gpus=0, progress_bar=False).scores
json.dump(scores, open(sys.argv[3], "w", encoding="utf-8"))
"""


@dataclass(frozen=True)
class Check:
    """largest: largest difference of a segment's score between the two implementations."""

    system: str
    metric: str
    segments: int
    largest: float
    agrees: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(
    metric: Comet,
    scores: Mapping[str, Sequence[float]],
    hypotheses: Mapping[str, Sequence[str]],
    references: Sequence[str],
    sources: Sequence[str | None],
    environment: Path,
) -> list[Check]:
    """Compare the segment `scores` of each system with the original's, made in `environment`."""
    python = install(environment)
    files = locate(metric.model)
    if files.checkpoint != files.settings.parent / CHECKPOINT:
        raise DataError(f"the original COMET needs {CHECKPOINT} beside {SETTINGS}; found {files.checkpoint}.")
    checks = []
    for system, texts in hypotheses.items():
        note(f"  the original COMET scores {system} ({metric.name})")
        columns = {"src": [text or "" for text in sources], "mt": list(texts), "ref": list(references)}
        original = _original(python, files, columns, metric.half)
        largest = max(abs(a - b) for a, b in zip(original, scores[system], strict=True))
        checks.append(Check(system, metric.name, len(texts), largest, largest <= TOLERANCE))
    return checks


def install(directory: Path) -> Path:
    """Python of the environment in `directory`, made there unless it is complete. Raises DataError."""
    directory = directory.absolute()
    python = directory / "bin" / "python"
    requirements = resources.files("sordino.metrics").joinpath(REQUIREMENTS).read_text(encoding="utf-8")
    ready = directory / READY
    if ready.is_file() and ready.read_text(encoding="utf-8") == requirements:
        return python
    if directory.exists() and any(directory.iterdir()) and not (directory / "pyvenv.cfg").is_file():
        raise DataError(f"{directory} is not empty and no Python environment.", "Name another directory.")
    note(f"installing {', '.join(requirements.split())} into {directory} (1.4 GB)")
    _run([sys.executable, "-m", "venv", str(directory)], directory.parent)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as listed:
        listed.write(requirements)
        listed.flush()
        _run([str(python), "-m", "pip", "install", "--quiet", "-r", listed.name], directory)
    ready.write_text(requirements, encoding="utf-8")
    return python


def _original(python: Path, files: Files, columns: Mapping[str, list[str]], half: bool) -> list[float]:
    """Segment scores by unbabel-comet on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder), Path(folder) / "scores.json"
        model = str(files.checkpoint.absolute())
        if half:
            for name, texts in columns.items():
                lines = (" ".join(text.split("\n")).strip() + "\n" for text in texts)
                (root / name).write_text("".join(lines), encoding="utf-8")
            paths = [
                part for flag, name in (("-s", "src"), ("-t", "mt"), ("-r", "ref")) for part in (flag, str(root / name))
            ]
            command = [
                "-m",
                "comet.cli.score",
                *paths,
                "--model",
                model,
                "--gpus",
                "0",
                "--quiet",
                "--to_json",
                str(out),
            ]
        else:
            (root / "job.json").write_text(json.dumps(columns), encoding="utf-8")
            command = ["-c", FLOAT32, model, str(root / "job.json"), str(out)]
        _run([str(python), *command], files.settings.parent)  # an encoder named by a relative path lies beside
        scores = json.loads(out.read_text(encoding="utf-8"))
    if half:
        (rows,) = scores.values()
        return [float(row["COMET"]) for row in rows]
    return [float(score) for score in scores]


def _run(command: list[str], where: Path) -> None:
    where.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    ran = subprocess.run(command, cwd=where, env=kept, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = "\n".join(ran.stderr.strip().splitlines()[-3:])
        raise DataError(f"{' '.join(command[:4])} ... failed: {last}", "The environment needs a package index.")
