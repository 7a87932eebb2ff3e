"""The telemetry benchmark, small: it compares steps that were exported with steps that were not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_small_comparison() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/telemetry.py", "--quick"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "simulated: 20 steps of each kind" in done.stdout
    assert re.search(r"wall: median × [\d.]+, mean × [\d.]+; CPU: [+-][\d.]+ ms a step", done.stdout)
    assert "warning" not in done.stdout + done.stderr
