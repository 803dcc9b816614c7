"""docs/hardware.md is what benchmarks/hardware.py makes of today's formulas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    script = ROOT / "benchmarks" / "hardware.py"
    made = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    page = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    assert page == made.stdout, "run: python benchmarks/hardware.py > docs/hardware.md"
    assert "Qwen/Qwen2-Audio-7B-Instruct` | 8.40 B | 68.0 (80 GB)" in page
