"""A host with the stand-in Docker daemon."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STANDIN = Path(__file__).parent / "standins" / "docker_engine.py"


class DockerHost:
    """The daemon as a process; `DOCKER_HOST` leads to it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "docker"
        self.state.mkdir()
        self.socket = folder / "docker.sock"
        self.disk = folder / "Ubuntu.qcow2"
        self.disk.write_bytes(b"QFI\xfb")
        self.process = subprocess.Popen([sys.executable, str(STANDIN), str(self.socket), str(self.state)])
        deadline = time.monotonic() + 20
        while not self.socket.exists():
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def faults(self, **faults: Any) -> None:
        (self.state / "faults.json").write_text(json.dumps(faults))

    def containers(self) -> list[dict[str, Any]]:
        path = self.state / "containers.json"
        return list(json.loads(path.read_text()).values()) if path.exists() else []

    def has_created(self) -> bool:
        """Whether there ever was a container."""
        return (self.state / "containers.json").exists()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
