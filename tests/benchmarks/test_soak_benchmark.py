"""The soak benchmark, small: it trains until the turns were taken, and judges what a run directory says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/soak.py", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def a_run(folder: Path, mib_per_1000: float, until: int = 40) -> Path:
    """Metrics of 40 steps of 100 turns, of a driver that grows until a step."""
    rows = [
        {
            "rollout/turns": 10.0,
            "rollout/valid": 10,
            "driver/rss_gib": 0.5 + mib_per_1000 * min(step, until) / 10 / 1024,
        }
        for step in range(40)
    ]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_growth_above_the_bound_is_an_error(tmp_path: Path) -> None:
    steady = soak("--read", str(a_run(tmp_path / "steady", 2.0)), "--bound", "3")
    assert steady.returncode == 0, steady.stderr
    assert "4000 turns in 40 steps" in steady.stdout
    assert "driver: +2.00 MiB per 1000 turns" in steady.stdout
    assert soak("--read", str(a_run(tmp_path / "grows", 4.0)), "--bound", "3").returncode == 1


def test_what_is_full_after_half_of_the_turns_is_no_growth(tmp_path: Path) -> None:
    full = soak("--read", str(a_run(tmp_path / "fills", 20.0, until=19)))
    assert full.returncode == 0, full.stderr
    assert "driver: +0.00 MiB per 1000 turns over the last half (bound 0.5)" in full.stdout
    assert soak("--read", str(a_run(tmp_path / "on", 20.0, until=25))).returncode == 1


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path) -> None:
    few = ("imitation.steps=10", "trainer.tasks_per_step=1", "trainer.checkpoint_every=1000")
    done = soak("--turns", "40", "--bound", "1e9", "--folder", str(tmp_path), *few)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "distinct screenshots" in done.stdout
    assert (tmp_path / "soak" / "metrics.jsonl").exists()
