"""A run that is killed ten times, in its steps and in its saves, ends as one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def lived(root: Path, *, seed: int, kills: int) -> dict:
    program = Path(__file__).with_name("killable.py")
    root.mkdir()
    tests = program.parents[1]
    path = os.pathsep.join(map(str, (tests, program.parent, os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, str(program), str(root), str(seed), str(kills)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_losses_weights_and_replay_are_those_of_a_run_that_was_never_killed(tmp_path: Path) -> None:
    whole = lived(tmp_path / "whole", seed=0, kills=0)
    killed = lived(tmp_path / "killed", seed=1, kills=10)
    assert killed["in_a_save"] >= 1
    assert killed["outcome"] == whole["outcome"]
    rows = whole["outcome"]["rows"]
    assert len(rows) == whole["outcome"]["step"] == 6
    assert all(row["learner/grad_norm"] > 0 for row in rows), "the comparison would show nothing"
    assert sum(row["learner/rows_replayed"] for row in rows) >= 2, "nor would it of the replay buffer"
