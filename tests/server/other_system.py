"""Runs a program as if on macOS or Windows: `python other_system.py darwin|win32 MODULE [ARGUMENT...]`.

What those systems lack is taken away before ARPO is imported: modules, functions, signals, and on Windows what its event
loop cannot do. The standard library and other people's packages are imported first: they have branches of their own for
these systems, which need those systems. MODULE is then run as with `python -m`; `-` only imports the ARGUMENTs.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.abc
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence

LINUX_ONLY = {"Xlib", "gi", "mss"}
UNIX_ONLY = LINUX_ONLY | {"fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog"}
OTHERS = (
    "anyio._backends._asyncio", "fastapi", "filelock", "httpx", "msgpack", "PIL.Image", "prometheus_client",
    "pydantic", "rich.console", "rich.progress", "rich.traceback", "typer", "uvicorn", "uvicorn.protocols.http.auto",
    "uvicorn.lifespan.on", "uvicorn.loops.auto", "yaml", "ssl", "tempfile", "concurrent.futures.process",
    "multiprocessing.connection", "subprocess", "ctypes.util", "webbrowser",
)  # fmt: skip
# Kept: signal.SIGKILL and socket.AF_UNIX, which this system's subprocess module and event loop need themselves.
LINUX_CALLS = {
    os: ("pidfd_open", "memfd_create", "sched_getaffinity", "O_PATH"),
    signal: ("pidfd_send_signal",),
}
UNIX_CALLS = {
    os: (
        "fork", "forkpty", "setsid", "setpgid", "killpg", "getuid", "geteuid", "getgid", "getegid", "getpgid", "chown",
        "mkfifo", "uname", "getloadavg", "nice",
    ),
    signal: (
        "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGSTOP", "SIGCONT", "SIGPIPE", "SIGALRM", "SIGQUIT",
        "alarm", "pthread_sigmask", "sigwait",
    ),
    asyncio: ("open_unix_connection", "start_unix_server"),
}  # fmt: skip


class Absent(importlib.abc.MetaPathFinder):
    """Refuses modules that the system does not have."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def not_there(*_: object, **__: object) -> None:
    raise NotImplementedError


def become(system: str) -> None:
    """Take away what the system lacks."""
    for name in OTHERS:
        importlib.import_module(name)
    absent = UNIX_ONLY if system == "win32" else LINUX_ONLY
    for name in [name for name in sys.modules if name.partition(".")[0] in absent]:
        del sys.modules[name]
    sys.meta_path.insert(0, Absent(absent))
    calls = [LINUX_CALLS, UNIX_CALLS] if system == "win32" else [LINUX_CALLS]
    for owner, names in (item for table in calls for item in table.items()):
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
    if system == "win32":
        for name in ("add_signal_handler", "remove_signal_handler", "add_reader", "remove_reader"):
            setattr(asyncio.SelectorEventLoop, name, not_there)
    assert not [name for name in sys.modules if name.startswith("arpo")]
    subprocess._USE_VFORK = False  # type: ignore[attr-defined]
    sys.platform = system


def main(arguments: Sequence[str]) -> None:
    system, module, *rest = arguments
    sys.path = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]  # noqa: PTH100, PTH120
    become(system)
    if module == "-":
        for name in rest:
            importlib.import_module(name)
        return
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
