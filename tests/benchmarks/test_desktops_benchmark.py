"""The desktops' benchmark runs and explains itself. What it measures depends on the machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "desktops.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_it_measures_resets_steps_and_cpu() -> None:
    done = run("--provider", "simulated", "--episodes", "2", "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert "load average" in done.stdout
    for task in ("notes-milk", "calculator-sum"):
        for row in ("soft", "hard"):
            assert re.search(rf"^{task} +{row}( +\d+\.\d{{3}}){{3}}", done.stdout, re.MULTILINE), done.stdout
        assert re.search(rf"^{task} +( +\d+\.\d{{3}}){{3}} +act \d", done.stdout, re.MULTILINE), done.stdout
        assert re.search(rf"^{task} +act, settle +\d+\.\d{{4}}: this process", done.stdout, re.MULTILINE)


def test_several_desktops_are_measured_at_once() -> None:
    done = run("--provider", "simulated", "--episodes", "3", "--desktops", "3", "--task", "notes-milk")
    assert done.returncode == 0, done.stderr
    assert "steps/s on 3 desktop(s)" in done.stdout


def test_its_help_teaches_and_bad_input_is_refused() -> None:
    assert "cleaned in the background" in run("--help").stdout
    assert run("--episodes", "0").returncode == 2
