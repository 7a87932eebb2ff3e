"""A real Ray cluster on this machine for tests, and what runs in it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runs import ROOT, wait_for

ACTORS = ("ray::EngineActor", "ray::RankActor")


@dataclass(frozen=True)
class RayCluster:
    """env: for whoever uses it; all of its processes have `mark` in theirs."""

    env: dict[str, str]
    dashboard: str
    mark: str

    def submit(self, *arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """`ray job submit -- arpo train ...`, to its end."""
        command = [*ray_command(), "job", "submit", "--address", self.dashboard]
        program = [sys.executable, "-m", "arpo.cli", "train", *arguments]
        return subprocess.run(
            [*command, "--", *program],
            env={**os.environ, **self.env}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip

    def actors(self, *names: str) -> list[int]:
        """Process ids of the actors of these classes, or of all of a run's, that are there in this cluster."""
        wanted = names or ACTORS
        return [
            pid
            for pid, command in processes(self.mark)
            if command.startswith(tuple(n.encode() for n in wanted))
        ]


def ray_command() -> Sequence[str]:
    """Ray's command line, of the environment that runs the tests."""
    return [str(Path(sys.executable).parent / "ray")]


def processes(mark: str) -> Iterator[tuple[int, bytes]]:
    """(id, command line) of every process that was started with this in its environment."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and mark.encode() in (folder / "environ").read_bytes():
                yield int(folder.name), (folder / "cmdline").read_bytes()
        except OSError:
            continue


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def ray_cluster(cpus: int) -> Iterator[RayCluster]:
    """`ray start --head` with a dashboard, for jobs; gone at the end."""
    mark = f"arpo-{uuid.uuid4().hex}"
    port, dashboard, agent = free_port(), free_port(), free_port()
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {
        "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"127.0.0.1:{port}", "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": paths,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [
                *ray_command(), "start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus}",
                "--node-ip-address=127.0.0.1", "--include-dashboard=true", f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}", "--disable-usage-stats",
                "--object-store-memory=200000000",
            ],
            env={**os.environ, **env, "ARPO_TEST_CLUSTER": mark, "RAY_ADDRESS": ""},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(lambda: answers(dashboard), 60)
            yield RayCluster(env, f"http://127.0.0.1:{dashboard}", mark)
        finally:
            head.terminate()
            head.wait(30)
            for pid, _ in list(processes(mark)):
                os.kill(pid, 9)
            time.sleep(0.2)


def answers(port: int) -> bool:
    """Whether someone listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
