"""Counters of a server in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections import defaultdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds
LATENCY = "sordino_request_seconds"
KINDS = {
    "sordino_requests_total": ("counter", "Requests answered, by path and status."),
    "sordino_requests_in_progress": ("gauge", "Requests being read, waiting or translated."),
    "sordino_clips_waiting": ("gauge", "Clips that wait for the decoding thread."),
    "sordino_models_loaded": ("gauge", "Models that are ready."),
    "sordino_batches_total": ("counter", "Batches decoded."),
    "sordino_clips_total": ("counter", "Clips translated."),
    "sordino_audio_seconds_total": ("counter", "Seconds of audio translated."),
    "sordino_generated_tokens_total": ("counter", "Tokens generated."),
    "sordino_busy_seconds_total": ("counter", "Seconds in which the decoding thread encoded or decoded."),
    LATENCY: ("histogram", "Seconds from a translation request's first byte to its answer's last."),
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Used by one thread."""

    def __init__(self) -> None:
        self.values: dict[str, dict[Labels, float]] = {name: defaultdict(float) for name in KINDS if name != LATENCY}
        for name, (kind, _) in KINDS.items():
            if kind == "gauge":
                self.set(name, 0)
        self.buckets = [0] * len(BUCKETS)
        self.seconds, self.count = 0.0, 0

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self.values[name][tuple(labels.items())] += amount

    def set(self, name: str, value: float) -> None:
        self.values[name][()] = value

    def value(self, name: str, **labels: str) -> float:
        return self.values[name].get(tuple(labels.items()), 0.0)

    def observe(self, seconds: float) -> None:
        """One request's time."""
        self.seconds, self.count = self.seconds + seconds, self.count + 1
        for i, bound in enumerate(BUCKETS):
            self.buckets[i] += seconds <= bound

    def text(self) -> str:
        lines = []
        for name, (kind, description) in KINDS.items():
            lines += [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]
            if name == LATENCY:
                lines += [f'{name}_bucket{{le="{b:g}"}} {n}' for b, n in zip(BUCKETS, self.buckets, strict=True)]
                lines += [f'{name}_bucket{{le="+Inf"}} {self.count}', f"{name}_sum {self.seconds:.6f}"]
                lines.append(f"{name}_count {self.count}")
            else:
                lines += [f"{name}{_labels(labels)} {value:.10g}" for labels, value in self.values[name].items()]
        return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels) + "}" if labels else ""
