"""Machines of the stand-in `vmrun`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

STANDIN = Path(__file__).parent / "standins" / "vmrun.py"


class Vmware:
    """A host with the stand-in installed: `vmrun` is on PATH, machines are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.bin = folder / "bin"
        self.state.mkdir()
        self.bin.mkdir()
        program = self.bin / "vmrun"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {STANDIN} "$@"\n')
        program.chmod(0o755)

    def environment(self) -> dict[str, str]:
        return {"VMRUN_STATE": str(self.state), "PATH": f"{self.bin}:{os.environ['PATH']}"}

    def machine(self, name: str = "Ubuntu", snapshot: str | None = "init_state") -> Path:
        """A new machine; its path has a space, as on a Mac."""
        folder = (self.folder / "Virtual Machines" / name).resolve()
        disk = folder / "disk"
        disk.mkdir(parents=True)
        (folder / f"{name}.vmx").write_text('displayName = "{name}"\n')
        (disk / "installed.txt").write_text("from the image")
        if snapshot:
            (folder / "snapshots" / snapshot).mkdir(parents=True)
            (folder / "snapshots" / snapshot / "installed.txt").write_text("from the image")
        return folder / f"{name}.vmx"

    def faults(self, **faults: dict[str, Any]) -> None:
        (self.state / "faults.json").write_text(json.dumps(faults))

    def running(self) -> dict[str, Any]:
        path = self.state / "running.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def commands(self) -> list[str]:
        return [line.split()[2] for line in (self.state / "log").read_text().splitlines()]

    def pull_all_plugs(self) -> None:
        for machine in self.running().values():
            if machine["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(machine["pid"], signal.SIGKILL)
