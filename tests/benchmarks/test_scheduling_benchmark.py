"""The scheduling benchmark, small: nothing is lost, nothing is too old, and waiting for nobody is faster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_small_comparison() -> None:
    done = subprocess.run(
        [
            sys.executable, "benchmarks/scheduling.py",
            "--desktops", "16", "--batch", "4", "--steps", "6", "--seed", "1", "--json",
        ],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    rows = {row["way"]: row for row in json.loads(done.stdout)}
    assert all(row["lost"] == 0 and row["steps"] == 6 for row in rows.values())
    assert [rows[f"ours, staleness ≤ {k}"]["stale_max"] <= k for k in (0, 1, 2)] == [True, True, True]
    ahead, barrier, lock = (rows[way]["env"] for way in ("ours, staleness ≤ 1", "group-barrier", "lock-step"))
    assert lock < barrier < ahead <= 1.0
    more = rows["ours, staleness ≤ 1, +1"]
    assert more["stale_max"] <= 1
    assert all((row["spare"] > 0) <= row["way"].endswith("+1") for row in rows.values())
