"""Engine actors on a real Ray cluster: the samples of one engine, whatever happens to the actors."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed; fix: pip install 'arpo[ray]'"
)
def test_requests_are_answered_as_by_one_engine_while_actors_are_killed() -> None:
    # in a process of its own: Ray looks at its environment once, when it is imported
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    paths = os.pathsep.join(
        [str(HERE.parents[1]), str(HERE.parents[1] / "e2e"), *filter(None, [env.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [sys.executable, str(HERE / "engines_program.py")],
        env={**env, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
