"""A terminal to run programs in, and to read as a person would."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable

import pyte
from runs import ROOT


class Terminal:
    """A program in a terminal of a size. screen: what stands on it now."""

    def __init__(self, *command: str, columns: int = 100, lines: int = 40, **env: str) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**inherited, "TERM": "xterm-256color", **env},
        )
        os.close(theirs)
        self._master = own

    @property
    def screen(self) -> str:
        """The lines that are not empty."""
        return "\n".join(line.rstrip() for line in self._screen.display if line.strip())

    @property
    def cursor_hidden(self) -> bool:
        """Whether the program has left the person without a cursor."""
        return self._screen.cursor.hidden

    def watch(self, seen: Callable[[str], bool], timeout_s: float = 120) -> list[str]:
        """Read until a screen is as wanted; all screens on the way. Fails when the program ends or time is up before."""
        screens = []
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ended = not self._read()
            screens.append(self.screen)
            if seen(self.screen):
                return screens
            assert not ended, f"it ended, and never was as wanted:\n{self.screen}"
        raise AssertionError(f"timed out; the screen now:\n{self.screen}")

    def finish(self, timeout_s: float = 120) -> list[str]:
        """Read until the program ends."""
        screens = []
        deadline = time.monotonic() + timeout_s
        while self._read():
            screens.append(self.screen)
            assert time.monotonic() < deadline, f"timed out; the screen now:\n{self.screen}"
        self.process.wait(timeout=10)
        return [*screens, self.screen]

    def _read(self) -> bool:
        """Whatever it wrote in the next moment; False when it will write no more."""
        if not select.select([self._master], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)


def train(*arguments: str, **options: str | int) -> Terminal:
    """`arpo train ...` in a terminal."""
    return Terminal(sys.executable, "-m", "arpo.cli", "train", *arguments, **options)  # type: ignore[arg-type]
