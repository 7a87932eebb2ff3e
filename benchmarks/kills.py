"""Kills a training run at random, again and again, and prints what became of it.

    python benchmarks/kills.py --kills 10

A run on a Ray cluster of its own with two learner ranks, one engine and simulated desktops is hit with SIGKILL at random
moments: driver, learner rank, engine or env-server. A driver that was killed is started again with the same command. At the
end every step must have its configured number of valid trajectories. Linux only (it looks into /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
GROUP_SIZE, TASKS = 3, 2
VICTIMS = {
    "driver": b"",
    "rank": b"ray::RankActor",
    "engine": b"ray::EngineActor",
    "env-server": b"arpo.server.cli",
}
PATIENCE_S = 300.0


class Run:
    """The run under fire: its driver process and its run directory."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "kills"
        self._folder = folder
        self._log = (folder / "output.log").open("ab")
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self, steps: int) -> None:
        """Start the driver; the same command each time, apart from the number of steps."""
        command = [
            sys.executable, "-m", "arpo.cli", "train", "config=configs/smoke_cpu.yaml", f"run.dir={self._folder}",
            "run.name=kills", "env.provider=simulated", "env.screen=[640, 480]", "tasks.suite=simulated",
            "imitation.enabled=false", "trainer.eval_before=false", "trainer.eval_after=false",
            f"trainer.tasks_per_step={TASKS}", f"rollout.group_size={GROUP_SIZE}", f"trainer.max_steps={steps}",
            "launcher.kind=ray", "learner.ranks=2",
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""}
        self.driver = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def rows(self) -> list[dict[str, float]]:
        """The steps that are done."""
        path = self.root / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def find(self, victim: str) -> list[int]:
        """Process ids of a kind."""
        assert self.driver is not None
        if victim == "driver":
            return [self.driver.pid]
        return [pid for pid in children(self.driver.pid) if VICTIMS[victim] in command_line(pid)]

    def wait_for_step(self, after: float) -> None:
        """Until metrics.jsonl has a line that was written after a moment."""
        path, deadline = self.root / "metrics.jsonl", time.monotonic() + PATIENCE_S
        while not (path.exists() and path.stat().st_mtime > after and self.rows()):
            assert self.driver is not None
            if self.driver.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the run has not gone on; see {self._folder / 'output.log'}")
            time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Process ids below a process."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found += [int(folder.name), *children(int(folder.name))]
        except (OSError, ValueError, IndexError):
            continue
    return found


def command_line(pid: int) -> bytes:
    """Of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def main() -> None:
    """Kill, wait for the next step, and again; then let the run end and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="arpo-kills-"))
    run = Run(folder)
    started = time.time()
    run.start(10_000)
    run.wait_for_step(started)
    print(f"first step after {time.time() - started:.0f} s; run directory {run.root}")
    print("| kill | victim | after step | next step after | \n|---|---|---|---|")
    for number in range(1, arguments.kills + 1):
        time.sleep(rng.uniform(0, 4))
        victim = rng.choice(list(VICTIMS))
        while not (found := run.find(victim)):
            time.sleep(0.1)
        step, struck = len(run.rows()), time.time()
        os.kill(rng.choice(found), signal.SIGKILL)
        if victim == "driver" and run.driver is not None:
            run.driver.wait()
            run.start(10_000)
        run.wait_for_step(struck + 0.1)  # a line on its way when the blow came is no recovery
        run.wait_for_step(time.time())
        print(f"| {number} | {victim} | {step} | {time.time() - struck:.0f} s |", flush=True)
    assert run.driver is not None
    run.driver.terminate()
    code = run.driver.wait()
    steps = len(run.rows()) + 2
    run.start(steps)
    ended = run.driver.wait()
    rows = run.rows()
    valid = Counter(int(row["rollout/valid"]) for row in rows)
    print(
        f"SIGTERM: exit code {code}; then to step {steps}: exit code {ended}; {time.time() - started:.0f} s in all"
    )
    print(f"valid trajectories a step: {dict(valid)} ({GROUP_SIZE * TASKS} configured)")
    print(f"episodes run again: {sum(int(row['rollout/retries']) for row in rows)}")
    if (
        ended
        or set(valid) != {GROUP_SIZE * TASKS}
        or [row["step"] for row in rows] != list(range(1, steps + 1))
    ):
        raise SystemExit("the run is not what it would have been")


if __name__ == "__main__":
    main()
