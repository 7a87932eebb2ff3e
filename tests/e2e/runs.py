"""Helpers for tests that watch a whole run from outside: its processes and its run directory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arpo.trajectory import Trajectory

ROOT = Path(__file__).parent.parent.parent


def start(*arguments: str, **env: str) -> subprocess.Popen[str]:
    """`arpo train ...` running in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "arpo.cli", "train", *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 240) -> str:
    """Its output once it has ended."""
    output, _ = process.communicate(timeout=timeout_s)
    return output


def children(pid: int) -> list[int]:
    """Process ids below a process."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found += [int(folder.name), *children(int(folder.name))]
    return found


def alive(pids: list[int]) -> list[int]:
    """Those that still run (a zombie does not)."""
    running = []
    for pid in pids:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z":
                running.append(pid)
    return running


def names(pids: list[int]) -> set[str]:
    """The programs of those that still run."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def wait_for(condition: Callable[[], Any], timeout_s: float = 120) -> None:
    """Poll until the condition holds; fails after the time-out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def lines(path: Path) -> list[dict[str, Any]]:
    """The documents of a JSONL file; none when it does not exist. The line that is being written does not count yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def trajectories(run: Path) -> list[Trajectory]:
    """All trajectories of a run directory."""
    return [
        Trajectory.model_validate_json(line)
        for path in sorted((run / "trajectories").glob("step-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
