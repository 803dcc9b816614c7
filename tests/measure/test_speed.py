"""The meter against a clock that the test turns, and what it refuses."""

import json
import os
import subprocess
import sys
import time

import pytest

from sordino.errors import DataError
from sordino.measure.speed import Meter, Speed


def run(code):
    """Standard output of Python code in a fresh process that imports what this one can."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return ran.stdout


def test_figures_follow_from_the_clock(monkeypatch):
    now = iter([100.0, 103.0, 200.0, 201.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    meter = Meter("cpu")
    with meter:
        meter.add(audio_seconds=12.0, tokens=30)
    with meter:  # entered again it adds up, and what lies between is not counted
        meter.add(audio_seconds=4.0, tokens=10)
        meter.add(audio_seconds=4.0, tokens=20)
    speed = meter.result()
    assert (speed.seconds, speed.audio_seconds, speed.tokens, speed.device) == (4.0, 20.0, 60, "cpu")
    assert (speed.rtf, speed.tokens_per_second) == (0.2, 15.0)
    assert Speed.from_json(json.loads(json.dumps(speed.to_json()))) == speed


def test_peak_memory_is_in_bytes_and_sees_an_allocation():
    code = (  # in a small process of its own
        "from sordino.measure.speed import Meter, peak_rss_bytes, reset_peak_rss\n"
        "earlier = bytearray(400_000_000)\n"
        "del earlier\n"
        "can_reset = reset_peak_rss()\n"
        "before = peak_rss_bytes()\n"
        "with Meter() as meter:\n"
        "    block = bytearray(200_000_000)\n"
        "    meter.add(audio_seconds=1.0)\n"
        "print(int(can_reset), before, meter.result().peak_memory_bytes)"
    )
    can_reset, before, peak = map(int, run(code).split())
    if can_reset:  # Linux
        assert 190e6 < peak - before < 260e6
        assert before < 300e6
    else:
        assert 400e6 < before <= peak


def test_nothing_measured_is_refused():
    with Meter() as meter:
        pass
    with pytest.raises(DataError, match="no speed to report"):
        meter.result()
    with pytest.raises(KeyError), Meter() as failed:
        failed.add(audio_seconds=1.0)
        raise KeyError
    with pytest.raises(DataError, match="no speed to report"):
        failed.result()


def test_metrics_measures_and_reports_import_without_torch():
    code = (
        "import sys, sordino.metrics.overlap, sordino.metrics.registry, sordino.metrics.health\n"
        "import sordino.measure.size, sordino.measure.speed, sordino.report.page, sordino.report.table\n"
        "assert 'torch' not in sys.modules"
    )
    run(code)
