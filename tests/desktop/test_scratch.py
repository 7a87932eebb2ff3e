"""Files of a process on this host go with it, or with the next one when it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from arpo.scratch import ScratchFolder

EPISODE = """
import asyncio, signal, sys
from arpo.desktop.guest_desktop import GuestDesktop
from arpo.providers.simulated.provider import SimulatedProvider
from arpo.tasks.validate import parse_task

TASK = {
    "id": "t", "instruction": "Do.", "config": [{"type": "execute", "parameters": {
        "command": ["echo", "hello"], "stdout": "said.txt"}}],
    "evaluator": {"func": "exact_match", "result": {"type": "rule", "rules": "a"},
                  "expected": {"type": "rule", "rules": {"expected": "a"}}},
}

async def main():
    desktop = GuestDesktop(SimulatedProvider())
    await desktop.reset(parse_task(TASK, "task"))
    assert await desktop.evaluate() == 1.0
    if sys.argv[1] == "hang":
        print("in the middle", flush=True)
        signal.pause()
    await desktop.close()

asyncio.run(main())
"""


def start(temporary: Path, mode: str) -> subprocess.Popen[str]:
    """A process with one episode; `hang` leaves it in the middle."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-c", EPISODE, mode], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_what_a_killed_process_leaves_goes_with_the_next_start(tmp_path: Path) -> None:
    killed = start(tmp_path, "hang")
    assert killed.stdout.readline() == "in the middle\n"
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "said.txt" for path in left)  # else the test would prove nothing
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(tmp_path.rglob("said.txt"))
    assert start(tmp_path, "end").wait(timeout=60) == 0
    assert list(tmp_path.iterdir()) == []


def test_folders_of_living_processes_stay(tmp_path: Path) -> None:
    living = start(tmp_path, "hang")
    try:
        living.stdout.readline()
        before = sorted(tmp_path.rglob("*"))
        assert start(tmp_path, "end").wait(timeout=60) == 0
        assert sorted(tmp_path.rglob("*")) == before
    finally:
        living.kill()
        living.wait()


def test_a_folder_is_private_and_goes_when_it_is_removed(tmp_path: Path) -> None:
    folder = ScratchFolder("ours-", tmp_path)
    assert folder.path.parent.stat().st_mode & 0o777 == 0o700
    (folder.path / "a").write_text("x")
    other = ScratchFolder("ours-", tmp_path)
    assert (folder.path / "a").exists()
    for made in (folder, other, folder):
        made.remove()
    assert list(tmp_path.iterdir()) == []
