"""200 requests over 16 connections against the same requests one at a time, to one server.

Clips of the demo's test and dev splits are sent to `sordino serve` in a process of its own, 50 one at a time and the
same 50 over 16 connections at once, by turns, so that whatever else the machine does slows both. No request may be lost
and every text must be the one that the clip got alone; the connections together must be answered twice as fast or more.

    python benchmarks/serving.py runs/demo-en-de/60-student --json serving.json
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import local
from typing import Any

import httpx2
import soundfile

from sordino.data.audio import load
from sordino.data.clip import SAMPLE_RATE

CORPUS = Path(__file__).parents[1] / "demo" / "corpus"
SPLITS = ("test", "dev")
ROUND = 50  # requests
LEAST = 2.0  # times as fast as one at a time


def clips(count: int) -> list[bytes]:
    """WAV files, over and over where the splits have fewer."""
    rows = [json.loads(line) for line in (CORPUS / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] in SPLITS]
    files = []
    for i in range(count):
        row = rows[i % len(rows)]
        file = io.BytesIO()
        soundfile.write(file, load(CORPUS / row["audio"], row["start"], row["seconds"]), SAMPLE_RATE, format="WAV")
        files.append(file.getvalue())
    return files


@contextmanager
def server(model: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`sordino serve` on a free port, its model loaded -> (address, process)."""
    words = [sys.executable, "-m", "sordino.cli", "serve", f"model={model}", "--port", "0", *options]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            address = next(found[0] for line in process.stderr if (found := re.findall(r"http://\S+", line)))
            while httpx2.get(f"{address}/health").status_code != 200:
                time.sleep(0.1)
            yield address, process
        finally:
            process.terminate()
            process.communicate()


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """That the server has used, which other work on the machine changes less than time; 0 where nothing says it."""
    file = Path(f"/proc/{process.pid}/stat")
    if not file.is_file():
        return 0.0
    ticks = file.read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def resident(process: subprocess.Popen[str]) -> int:
    """Bytes; 0 where the system does not say."""
    status = Path(f"/proc/{process.pid}/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


@dataclass
class Sent:
    """texts: in the order of the files, None where one was lost; latencies: seconds of each; seconds: of all.

    cpu: seconds that the server used.
    """

    texts: list[str | None] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0

    def to_json(self) -> dict[str, Any]:
        parts = statistics.quantiles(self.latencies, n=100)
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu, 2),
            "requests_per_second": round(len(self.texts) / self.seconds, 2),
            "p50": round(parts[49], 3),
            "p95": round(parts[94], 3),
            "lost": sum(text is None for text in self.texts),
        }


def send(address: str, files: list[bytes], connections: int, sent: Sent) -> None:
    """All files over so many connections."""
    own = local()

    def one(audio: bytes) -> tuple[str | None, float]:
        if not hasattr(own, "client"):
            own.client = httpx2.Client(timeout=600)
        start = time.perf_counter()
        answer = own.client.post(f"{address}/v1/audio/translations", files={"file": ("clip.wav", audio)})
        spent = time.perf_counter() - start
        return (answer.json()["text"] if answer.status_code == 200 else None), spent

    start = time.perf_counter()
    with ThreadPoolExecutor(connections) as threads:
        answers = list(threads.map(one, files))
    sent.seconds += time.perf_counter() - start
    sent.texts += [text for text, _ in answers]
    sent.latencies += [spent for _, spent in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--to", help="of a model that does not know its language")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    files = clips(args.requests)
    options = ["--dtype", args.dtype, *(["--to", args.to] if args.to else [])]
    with server(args.model, *options) as (address, process):
        alone, together = Sent(), Sent()
        send(address, files[: args.connections], args.connections, Sent())  # what is done once, is done before
        before = resident(process)
        for first in range(0, len(files), ROUND):
            part = files[first : first + ROUND]
            for connections, sent in ((1, alone), (args.connections, together)):
                used = cpu_seconds(process)
                send(address, part, connections, sent)
                sent.cpu += cpu_seconds(process) - used
        grown = resident(process) - before
        counted = httpx2.get(f"{address}/metrics").text
    batches, decoded = (
        int(re.findall(rf'^sordino_{name}_total{{model="model"}} (\d+)', counted, re.MULTILINE)[0])
        for name in ("batches", "clips")
    )
    others = sum(a != b for a, b in zip(alone.texts, together.texts, strict=True))
    result: dict[str, Any] = {"requests": args.requests, "connections": args.connections}
    result |= {"one_at_a_time": alone.to_json(), "together": together.to_json(), "other_texts": others}
    result |= {"batches": batches, "clips": decoded, "grown_bytes": grown}
    result["times"] = round(alone.seconds / together.seconds, 2)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if None in (*alone.texts, *together.texts) or others or result["times"] < LEAST:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
