"""The env-server's benchmark runs, and bytes, which no neighbour on the machine can change, are what they should be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "env_server.py"


def test_it_measures_overhead_without_errors_and_a_tenth_of_the_legacy_bytes() -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    errors = re.findall(r"^ +(?:1|4)  (?:back to back|paced) .* (\d+)$", run.stdout, re.MULTILINE)
    assert errors == ["0"] * 3, run.stdout
    ratios = dict(re.findall(r"^(\S.+?) {2,}\d+ +([0-9.]+)x ", run.stdout, re.MULTILINE))
    assert float(ratios["legacy JSON, png"]) == 1.0
    assert float(ratios["v1 JSON, png"]) >= 8
    assert float(ratios["v1 msgpack, png"]) >= 8.5
    assert float(ratios["v1 msgpack, webp lossless"]) > float(ratios["v1 msgpack, png"])
