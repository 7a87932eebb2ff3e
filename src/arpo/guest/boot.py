"""Boots a desktop: X server, home, session bus, window manager; as much of it as possible at the same time."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .machine import Machine

_TIMEOUT_S = 30.0
_START_ACCESSIBILITY = (
    "gdbus call --session --dest org.a11y.Bus --object-path /org/a11y/bus --method org.a11y.Bus.GetAddress"
)
_FOLDERS = ("Desktop", "Documents", "Downloads", "Pictures")


class BootError(Exception):
    """The desktop cannot start, or has ended; the message says which part and why."""


class Vital:
    """The processes without which there is no desktop."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *command: str, pass_fds: tuple[int, ...] = ()) -> None:
        """Start one. Raises `BootError`."""
        try:
            self._processes[command[0]] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=pass_fds
            )
        except OSError as error:
            raise BootError(f"cannot start {command[0]}: {error}") from None

    def wait(self, until: Sequence[int]) -> None:
        """Until a descriptor of `until` is readable. Raises `BootError` when one of the processes ends before."""
        names = {os.pidfd_open(process.pid): name for name, process in self._processes.items()}
        ready, _, _ = select.select([*names, *until], [], [])
        if not set(ready) & set(until):
            raise BootError(f"{names[ready[0]]} has ended")


def boot(
    vital: Vital, screen: str, display: str | None, template: Path, *, own_pid_namespace: bool
) -> Machine:
    """Boot the desktop and wait until its window manager runs. Raises `BootError`.

    screen: WIDTHxHEIGHT. display: the one to make, or None for the first free one. template: what HOME starts with.
    """
    display_read, display_write = os.pipe()
    vital.start(
        "Xvfb",
        *([display] if display else []),
        *("-displayfd", str(display_write), "-screen", "0", f"{screen}x24", "-dpi", "96", "-nolisten", "tcp"),
        # Browsers and office programs open many connections; without -noreset the server resets with the last one.
        *("-maxclients", "2048", "-noreset"),
        pass_fds=(display_write,),
    )
    os.close(display_write)
    _make_home(template)
    _start_bus(vital)
    # The imports take as long as the X server does, so they come before the wait for it.
    from .machine import Machine

    os.environ["DISPLAY"] = f":{_read_number(display_read)}"
    vital.start("openbox", "--sm-disable", "--config-file", str(Path.home() / ".config/openbox/rc.xml"))
    machine = Machine(os.environ["DISPLAY"], own_pid_namespace=own_pid_namespace)
    if not machine.windows.wait_for_manager(_TIMEOUT_S):
        raise BootError("openbox did not start")
    # Every GTK program waits for the accessibility bus when it starts; now nobody waits for it.
    machine.launcher.launch(_START_ACCESSIBILITY)
    return machine


def _make_home(template: Path) -> None:
    home = Path.home()
    for path in template.rglob("*"):
        if path.is_file():
            target = home / path.relative_to(template)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)  # contents only: the template may be read-only, a home must not be
    for name in _FOLDERS:
        (home / name).mkdir(exist_ok=True)
    os.chdir(home)


def _start_bus(vital: Vital) -> None:
    runtime = Path(os.environ["XDG_RUNTIME_DIR"])
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    address = f"unix:path={runtime}/bus"
    vital.start("dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address={address}")
    os.environ["DBUS_SESSION_BUS_ADDRESS"] = address


def _read_number(fd: int) -> int:
    """The display's number. The whole line is read: the server would die of a pipe that is closed before its end."""
    deadline = time.monotonic() + _TIMEOUT_S
    line = b""
    with open(fd, "rb", buffering=0) as pipe:
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
            part = pipe.read(16) if ready else b""
            if not part:
                raise BootError("Xvfb did not start")
            line += part
    return int(line)
