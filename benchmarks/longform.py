"""A two-hour talk made of the demo's clips: memory against length, a kill in the middle, and the scores.

The talk is the clips of the corpus' select, dev and test splits over and over, with pauses of 0.6 to 1.6 s. It is
translated by `sordino translate` in a process of its own, twice: undisturbed, and killed in the middle and started
again. The long talk may not need more memory than the short one (margin below), both runs must write the same bytes,
and the pieces that voice activity finds are resegmented to the references and scored, the short talk's true segments
beside them.

    python benchmarks/longform.py runs/demo-en-de/70-export/nf4 --minutes 10 120 --json longform.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from sordino.data.audio import load
from sordino.data.clip import SAMPLE_RATE

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "demo" / "corpus"
SPLITS = ("select", "dev", "test")
PAUSES = (0.6, 1.6)  # seconds
MARGIN = 64 * 2**20  # bytes that the resident set of the long talk may be above that of the short one


def make_talk(folder: Path, seconds: float, seed: int = 0, language: str = "de") -> Path:
    """Write talk.flac, talk.yaml (its true segments), talk.en and talk.<language> (a line a segment) -> the audio."""
    rows = [json.loads(line) for line in (CORPUS / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] in SPLITS]
    draw = random.Random(seed)
    draw.shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    listing: list[dict[str, Any]] = []
    at = 0
    file = folder / "talk.flac"
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1, "PCM_16") as out:
        while at < seconds * SAMPLE_RATE:
            row = rows[len(listing) % len(rows)]
            pause = np.zeros(round(draw.uniform(*PAUSES) * SAMPLE_RATE), dtype=np.float32)
            wave = load(CORPUS / row["audio"], row["start"], row["seconds"])
            out.write(pause)
            out.write(wave)
            start = (at + len(pause)) / SAMPLE_RATE
            listing.append({"wav": file.name, "offset": start, "duration": len(wave) / SAMPLE_RATE, "row": row})
            at += len(pause) + len(wave)
        out.write(np.zeros(SAMPLE_RATE, dtype=np.float32))
    for name in ("en", language):
        lines = "".join(item["row"][f"text_{name}"] + "\n" for item in listing)
        (folder / f"talk.{name}").write_text(lines, encoding="utf-8")
    for item in listing:
        del item["row"]
    (folder / "talk.yaml").write_text(yaml.safe_dump(listing, sort_keys=False), encoding="utf-8")
    return file


def translate(model: Path, file: Path, out: Path, *options: str, kill_after: float | None = None) -> dict[str, float]:
    """`sordino translate` in a process of its own -> CPU seconds and peak bytes; killed when it has so many rows."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    words = [sys.executable, "-m", "sordino.cli", "translate", str(model), str(file), "--out", str(out), *options]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    rows = out.with_name(out.name + ".partial") / ".state" / "segments.jsonl"
    peak = 0
    while process.poll() is None:
        time.sleep(0.2)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line))
        except (OSError, StopIteration):  # it has ended
            continue
        if kill_after is not None and rows.is_file() and rows.read_bytes().count(b"\n") >= kill_after:
            process.send_signal(signal.SIGKILL)
            process.wait()
    if kill_after is None and process.returncode:
        raise SystemExit(f"translate ended with {process.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    return {"cpu_seconds": round(used, 1), "peak_bytes": peak}


def score(out: Path, file: Path, language: str) -> dict[str, float]:
    """Scores of the pieces, resegmented to the talk's references."""
    words = [sys.executable, "-m", "sordino.cli", "score", str(out / "segments.jsonl"), "--to", language, "--json"]
    words += ["--references", str(file.with_suffix(f".{language}")), "--segments", str(file.with_suffix(".yaml"))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {each["name"]: round(each["value"], 2) for each in json.loads(done.stdout.splitlines()[-1])["scores"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, nargs=2, default=[10, 120], metavar=("SHORT", "LONG"))
    parser.add_argument("--to", default="de")
    parser.add_argument("--max-new-tokens", default="48")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    options = ["--to", args.to, "--max-new-tokens", args.max_new_tokens]
    result: dict[str, Any] = {"model": args.model.name, "minutes": args.minutes}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name, minutes in zip(("short", "long"), args.minutes, strict=True):
            file = make_talk(root / name, 60 * minutes, language=args.to)
            out = root / f"{name}-whole"
            result[name] = translate(args.model, file, out, *options) | {"scores": score(out, file, args.to)}
            seconds = soundfile.info(str(file)).duration
            result[name] |= {"audio_seconds": round(seconds, 1), "rtf": round(result[name]["cpu_seconds"] / seconds, 4)}
            rows = (out / "segments.jsonl").read_bytes()
            result[name]["pieces"] = rows.count(b"\n")
            result[name]["segments"] = file.with_suffix(".yaml").read_text().count("wav:")
            if name == "short":
                listed = root / "listed"
                translate(args.model, file, listed, *options, "--segments", str(file.with_suffix(".yaml")))
                result["true_segments"] = score(listed, file, args.to)
            print(json.dumps(result[name]), flush=True)
        again = root / "long-killed"
        translate(args.model, file, again, *options, kill_after=result["long"]["pieces"] // 2)
        if again.exists():
            raise SystemExit("it had finished before it could be killed")
        translate(args.model, file, again, *options)
        result["same_bytes"] = all(
            (again / name).read_bytes() == (out / name).read_bytes() for name in ("segments.jsonl", "text.txt")
        )
    result["more_bytes"] = result["long"]["peak_bytes"] - result["short"]["peak_bytes"]
    result["bounded"] = result["more_bytes"] <= MARGIN
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not (result["bounded"] and result["same_bytes"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
