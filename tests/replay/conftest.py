"""A run to export from, list and import, for the tests of data sets and of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from replay_kit import Run, close


@pytest.fixture
def source(tmp_path: Path) -> Run:
    """A run whose newest checkpoint holds three successes of two tasks."""
    run = Run(tmp_path / "source")
    buffer = run.buffer("one", "two")
    close(buffer, [1.0], task="other", shown="a", version=4)
    run.publish(buffer, 3)
    return run
