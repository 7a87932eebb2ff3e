"""Programs: run to the end, launch, open files."""

from __future__ import annotations

import os
import selectors
import shlex
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from .settle import Settler
from .windows import Windows

Command = str | list[str]

MAX_OUTPUT_BYTES = 4 * 2**20
"""The most that a program run to its end may print, its two outputs together."""

_CHUNK = 1 << 16
_WINDOW_TIMEOUT_S = 60.0
_PAINTED_QUIET_S = 0.25
_PAINTED_CEILING_S = 5.0
_UNTITLED_AFTER_S = 5.0  # a new window that does not name the file is taken for the right one after this


class OutputTooLarge(Exception):  # noqa: N818 - the program's doing, not an error of the guest
    """A program printed more than `MAX_OUTPUT_BYTES`.

    Whoever asked gets no part of it: what an evaluator would make of half a text is a wrong score.
    """

    def __init__(self) -> None:
        super().__init__(f"it printed more than {MAX_OUTPUT_BYTES >> 20} MiB; send what it prints to a file")


@dataclass(frozen=True)
class Finished:
    """A program that ran to its end."""

    returncode: int
    output: str
    error: str


def arguments(command: Command, *, shell: bool) -> Command:
    """OSWorld's reading of a command: a string without a shell is split; `~/` is expanded in each argument."""
    if isinstance(command, str):
        if shell:
            return command
        command = shlex.split(command)
    return [str(Path(part).expanduser()) if part.startswith("~/") else part for part in command]


def execute(
    command: Command, *, shell: bool = False, timeout_s: float = 120.0, cwd: str | None = None
) -> Finished:
    """Run a program to its end, that of its outputs.

    Raises OSError, and subprocess.TimeoutExpired or OutputTooLarge after killing it and its children.
    """
    process = subprocess.Popen(
        arguments(command, shell=shell),
        shell=shell,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, error = _outputs(process, timeout_s)
    except (subprocess.TimeoutExpired, OutputTooLarge):
        os.killpg(process.pid, 9)
        process.wait()
        raise
    return Finished(process.returncode, output.decode("utf-8", "replace"), error.decode("utf-8", "replace"))


def _outputs(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytearray, bytearray]:
    """What a process prints on its two pipes until both end, and the process too."""
    deadline = time.monotonic() + timeout_s
    output, error = bytearray(), bytearray()
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("a process was started without the pipes asked for")
    with process.stdout, process.stderr, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output)
        selector.register(process.stderr, selectors.EVENT_READ, error)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(process.args, timeout_s)
            for key, _ in ready:
                data = os.read(key.fd, _CHUNK)
                if not data:
                    selector.unregister(key.fileobj)
                key.data.extend(data)
            if len(output) + len(error) > MAX_OUTPUT_BYTES:
                raise OutputTooLarge
            if time.monotonic() > deadline:  # one that never pauses is always ready
                raise subprocess.TimeoutExpired(process.args, timeout_s)
    process.wait(max(0.0, deadline - time.monotonic()))
    return output, error


class Launcher:
    """Starts programs that stay, and knows when a file's window is there."""

    def __init__(self, windows: Windows, settler: Settler) -> None:
        self._windows = windows
        self._settler = settler

    def launch(self, command: Command, *, shell: bool = False) -> None:
        """Start a program and do not wait. Raises OSError when it cannot be started."""
        process = subprocess.Popen(
            arguments(command, shell=shell),
            shell=shell,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        threading.Thread(target=process.wait, daemon=True).start()  # else it stays a zombie once it has ended

    def open_file(self, path: Path) -> None:
        """Open a file with its application; returns when its window is painted. Raises TimeoutError or OSError."""
        before = {window.id for window in self._windows.list()}
        self.launch(["gio", "open", str(path)])
        start = time.monotonic()
        while time.monotonic() - start < _WINDOW_TIMEOUT_S:
            windows = self._windows.list()
            named = any(path.name in w.title or path.stem in w.title for w in windows)
            is_new = any(w.id not in before for w in windows)
            if named or (is_new and time.monotonic() - start > _UNTITLED_AFTER_S):
                # Windows map before they paint.
                self._settler.settle(_PAINTED_QUIET_S, _PAINTED_CEILING_S)
                return
            time.sleep(0.02)
        raise TimeoutError(f"no window for {path} within {_WINDOW_TIMEOUT_S:.0f} s")
