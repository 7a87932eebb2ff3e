#!/usr/bin/env python3
"""Stands for VMware's `vmrun`: keeps state on disk, takes its time, and fails with vmrun's words and exit codes.

A machine is a folder with a .vmx and a `disk/`, which is its guest's home; a snapshot is a copy of the disk. A machine
that runs is a process that answers OSWorld's routes at an address of its own in 127.0.0.0/8, port 5000; paused, that
process is stopped, so that requests hang as they do with a frozen machine. A running machine has a `.lck` folder.

State is in $VMRUN_STATE: `running.json`, `log` (every command), and `faults.json`, where tests ask for failures:
`{"<command>": {"say": text, "times": n, "hang_s": s}, "guest": {"boot_s": s, "deaf": true, "tools_after_s": s}}`.
The words are those of VMware's documentation and of users' reports; nobody has compared them with a real vmrun yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

STATE = Path(os.environ["VMRUN_STATE"])
RUNNING = STATE / "running.json"
GUEST = Path(__file__).with_name("osworld_guest.py")


def fail(words: str) -> NoReturn:
    print(f"Error: {words}")
    sys.exit(255)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


@contextlib.contextmanager
def running():
    """The machines that run; changes are kept."""
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        machines = read(RUNNING)
        yield machines
        fresh = RUNNING.with_suffix(".new")
        fresh.write_text(json.dumps(machines))
        fresh.replace(RUNNING)


def address(vmx: Path) -> str:
    digest = hashlib.sha256(str(vmx).encode()).digest()
    return f"127.{digest[0] % 200 + 20}.{digest[1]}.{digest[2] % 250 + 1}"


def lock_of(vmx: Path) -> Path:
    return vmx.with_name(vmx.name + ".lck")


def start(vmx: Path, *how: str) -> None:
    with running() as machines:
        if str(vmx) in machines:
            return
        if lock_of(vmx).exists():
            fail("The file is already in use")
        guest = read(STATE / "faults.json").get("guest", {})
        lock_of(vmx).mkdir()
        process = None
        if not guest.get("deaf"):
            command = [sys.executable, str(GUEST), address(vmx), "5000", str(vmx.parent / "disk")]
            command += [os.environ.get("VMRUN_SCREEN", "640x480"), str(guest.get("boot_s", 0.0))]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(STATE / "guest.log").open("ab")
            )  # fmt: skip
        machines[str(vmx)] = {
            "pid": process.pid if process else None,
            "since": time.time(),
            "paused": False,
            "gui": "nogui" not in how,
        }


def end(vmx: Path) -> None:
    with running() as machines:
        machine = powered_on(machines, vmx)
        if machine["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(machine["pid"], signal.SIGKILL)
        del machines[str(vmx)]
        shutil.rmtree(lock_of(vmx), ignore_errors=True)


def powered_on(machines: dict[str, Any], vmx: Path) -> dict[str, Any]:
    if str(vmx) not in machines:
        fail(f"The virtual machine is not powered on: {vmx}")
    return machines[str(vmx)]


def set_paused(vmx: Path, paused: bool) -> None:
    with running() as machines:
        machine = powered_on(machines, vmx)
        if machine["paused"] is paused:
            fail("The operation is not supported in the current state of the virtual machine")
        if machine["pid"]:
            os.kill(machine["pid"], signal.SIGSTOP if paused else signal.SIGCONT)
        machine["paused"] = paused


def guest_ip(vmx: Path, *wait: str) -> None:
    tools_after_s = read(STATE / "faults.json").get("guest", {}).get("tools_after_s", 0.0)
    with running() as machines:
        since = powered_on(machines, vmx)["since"]
    if time.time() < since + tools_after_s:
        fail(f"The VMware Tools are not running in the virtual machine: {vmx}")
    print(address(vmx))


def revert(vmx: Path, name: str) -> None:
    snapshot = vmx.parent / "snapshots" / name
    if not snapshot.is_dir():
        fail("The snapshot does not exist")
    with running() as machines:
        is_running = str(vmx) in machines
    if is_running:
        end(vmx)
    elif lock_of(vmx).exists():
        fail("The file is already in use")
    shutil.rmtree(vmx.parent / "disk", ignore_errors=True)
    shutil.copytree(snapshot, vmx.parent / "disk", symlinks=True)


def snapshot(vmx: Path, name: str) -> None:
    shutil.copytree(vmx.parent / "disk", vmx.parent / "snapshots" / name, symlinks=True)


def snapshots(vmx: Path) -> None:
    names = sorted(path.name for path in (vmx.parent / "snapshots").glob("*"))
    print("\n".join([f"Total snapshots: {len(names)}", *names]))


def machines_list() -> None:
    with running() as machines:
        print("\n".join([f"Total running VMs: {len(machines)}", *machines]))


def inject(command: str) -> None:
    """The failure that a test asked for, if it did."""
    faults = read(STATE / "faults.json")
    fault = faults.get(command)
    if fault is None or fault.get("times", 1) <= 0:
        return
    fault["times"] = fault.get("times", 1) - 1
    (STATE / "faults.json").write_text(json.dumps(faults))
    time.sleep(fault.get("hang_s", 0.0))
    if "say" in fault:
        fail(fault["say"])


def main() -> None:
    arguments = sys.argv[1:]
    with (STATE / "log").open("a") as log:
        log.write(" ".join(arguments) + "\n")
    if arguments[:1] != ["-T"] or arguments[1] not in ("ws", "fusion"):
        fail("Unable to connect to host. The specified version was not found")
    command, *rest = arguments[2:]
    inject(command)
    time.sleep(0.02)
    if command == "list":
        machines_list()
        return
    vmx = Path(rest[0]).resolve()
    if not vmx.exists():
        fail(f"Cannot open VM: {vmx}, The virtual machine cannot be found")
    commands = {
        "start": start, "stop": lambda vmx, *_: end(vmx), "suspend": lambda vmx, *_: end(vmx),
        "pause": lambda vmx: set_paused(vmx, True), "unpause": lambda vmx: set_paused(vmx, False),
        "getGuestIPAddress": guest_ip, "revertToSnapshot": revert, "snapshot": snapshot, "listSnapshots": snapshots,
    }  # fmt: skip
    if command not in commands:
        print(f"Unrecognized command: {command}\n\nvmrun version 1.17.0 build-0\n\nUsage: vmrun ...")
        sys.exit(255)
    commands[command](vmx, *rest[1:])


if __name__ == "__main__":
    main()
