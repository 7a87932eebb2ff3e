"""One QEMU process and its monitor.

Invariant: once `end` has returned, the process is gone; when our own process dies, it dies with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, QMPClient, QMPError

from arpo.providers.base import ProviderError
from arpo.providers.qemu.command_line import host_ports

_COMMAND_S = 30.0
_POLL_S = 0.05
_LOG_LINES = 10

# What QEMU says → what to do.
_FIXES = (
    ("kvm: permission denied", "let this user open /dev/kvm, or --provider-option accel=tcg"),
    ("kvm", "accel=tcg among the --provider-options, if this machine's KVM does not work"),
    ("no space left", "free disk space, or --provider-option folder=/with/more/space"),
    ("cannot set up guest memory", "a smaller --provider-option memory=…"),
    ("cannot allocate memory", "a smaller --provider-option memory=…, or fewer desktops"),
    ("image is corrupt", "unpack the image again"),
    ("not in qcow2 format", "unpack the image again"),
)

# It writes every lost connection down as an error; here that is how a machine ends.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class Machine:
    """A virtual machine in a process of its own. command: gets the monitor's descriptor and gives QEMU's command line.

    folder: for the files that QEMU makes. fds: descriptors that QEMU gets besides its monitor.
    """

    def __init__(self, command: Callable[[int], list[str]], folder: Path, fds: Sequence[int]) -> None:
        self._command = command
        self._folder = folder
        self._fds = tuple(fds)
        self._monitor = QMPClient("arpo")
        self._socket: socket.socket | None = None
        self._process: Process | None = None
        self._spawning: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=_LOG_LINES)
        self._listening: asyncio.Task[None] | None = None

    async def launch(self) -> None:
        """Start QEMU and wait until its monitor answers. Raises ProviderError; `end` is wanted after that, too."""
        ours, theirs = socket.socketpair()
        with theirs:
            # not to be cancelled half-way: a process that nobody knows cannot be ended
            self._spawning = asyncio.create_task(self._spawn(theirs.fileno()))
            try:
                await asyncio.shield(self._spawning)
            except BaseException:
                await asyncio.gather(self._spawning, return_exceptions=True)
                ours.close()
                raise
        try:
            async with asyncio.timeout(_COMMAND_S):
                await self._monitor.connect(ours)
            self._socket = ours  # the client's from here on, but for `give`
        except (ConnectError, TimeoutError):
            ours.close()
            raise await self._why("did not start") from None

    async def command(self, name: str, **arguments: Any) -> Any:
        """A command of QEMU's monitor; returns its answer. Raises ProviderError."""
        try:
            async with asyncio.timeout(_COMMAND_S):
                return await self._monitor.execute(name, arguments or None)
        except (QMPError, TimeoutError) as error:
            raise await self._why(f"refused {name} ({str(error) or 'no answer'})") from error

    async def give(self, descriptor: int, name: str) -> None:
        """Hand it a descriptor of ours. Raises ProviderError."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended: the command says why
                socket.send_fds(self._socket, [b" "], [descriptor])
        await self.command("getfd", fdname=name)

    async def ports(self) -> dict[int, int]:
        """Port in the guest → port of 127.0.0.1."""
        return host_ports(await self.command("human-monitor-command", **{"command-line": "info usernet"}))

    async def migrated(self) -> None:
        """Wait until a state was saved or loaded. Raises ProviderError when it could not be."""
        while (state := await self.command("query-migrate")).get("status") not in ("completed", "failed"):
            await self.check_running()
            await asyncio.sleep(_POLL_S)
        if state["status"] == "failed":
            raise await self._why(f"could not hand on a state ({state.get('error-desc', 'no reason given')})")

    async def check_running(self) -> None:
        """Raises ProviderError with QEMU's last words when it has ended."""
        if self._process is None or self._process.returncode is not None:
            raise await self._why("has ended by itself")

    async def end(self) -> None:
        """Kill QEMU: nobody wants what its guest was doing. May be called again."""
        if self._spawning is not None:
            await asyncio.gather(self._spawning, return_exceptions=True)  # what failed is `launch`'s to tell
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._monitor.disconnect()
        if self._listening is not None:
            await self._listening

    async def _spawn(self, monitor: int) -> None:
        command = self._command(monitor)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env={"PATH": os.environ.get("PATH", os.defpath), "TMPDIR": str(self._folder)},
                cwd="/",
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=PIPE,
                pass_fds=(monitor, *self._fds),
                start_new_session=True,  # Ctrl-C in a terminal is the env-server's alone
            )
        except OSError as error:
            raise ProviderError(f"{command[0]} cannot be started: {error.strerror}") from error
        if self._process.stderr is not None:
            self._listening = asyncio.create_task(self._listen(self._process.stderr))

    async def _listen(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            self._said.append(line.decode("utf-8", "replace").strip())

    async def _why(self, what: str) -> ProviderError:
        """What happened, QEMU's last words, and the fix if they are known."""
        if self._process is not None and self._listening is not None:
            with contextlib.suppress(TimeoutError):  # it still runs: what it said is there already
                async with asyncio.timeout(0.5):
                    await self._process.wait()
                    await asyncio.shield(self._listening)
        said = " | ".join(self._said) or "it said nothing"
        fixes = [fix for words, fix in _FIXES if words in f"{what} {said}".lower()]
        return ProviderError(f"QEMU {what}: {said}" + (f"; fix: {fixes[0]}" if fixes else ""))
