"""One ssh process: started, watched, ended.

Invariant: whoever leaves the context leaves no ssh behind, and neither does a program that is killed inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from arpo.tunnel.reasons import Reason, refused_channel, why_it_ended
from arpo.tunnel.settings import TunnelSettings

_FORWARDED = "remote forward success for"
_STOP_S = 5.0
_KEPT_LINES = 400
# A shell that becomes ssh, and beside it one that waits for a line from this program: should the pipe end without one,
# this program was killed, and ssh is ended. `$$` is ssh's process id. Linux alone could do it without (PR_SET_PDEATHSIG).
_ENDS_WITH_US = 'exec 3<&0; (read -r _ <&3 || kill $$) 2>/dev/null & exec "$@" 3<&- </dev/null'


class Connection:
    """A running ssh. up: set once the cluster has given the port. refused: called when it does not open what `-L` asks
    for.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, settings: TunnelSettings, refused: Callable[[], None]
    ) -> None:
        self._process = process
        self._settings = settings
        self._refused = refused
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.up = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name="ssh's messages")

    async def ended(self) -> Reason:
        """Why ssh ended, once it has."""
        status = await self._process.wait()
        await self._reading
        return why_it_ended(self._settings, list(self._lines), status)

    async def stop(self) -> None:
        """End ssh, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None  # noqa: S101 - it is a pipe
        async for raw in stderr:
            line = raw.decode(errors="replace").rstrip()
            self._lines.append(line)
            if _FORWARDED in line:
                self.up.set()
                # what was said until now explains no later end
                self._lines.clear()
            elif refused_channel(line):
                self._refused()


@asynccontextmanager
async def connection(
    command: Sequence[str], settings: TunnelSettings, refused: Callable[[], None]
) -> AsyncIterator[Connection]:
    """ssh runs inside."""
    reads, writes = os.pipe()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _ENDS_WITH_US, "sh", *command),
                stdin=reads,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                limit=2**20,
                # Ctrl-C at a terminal is for this program, which then ends ssh.
                start_new_session=True,
            )
        finally:
            os.close(reads)
        running = Connection(process, settings, refused)
        try:
            yield running
        finally:
            await running.stop()
            with contextlib.suppress(BrokenPipeError):  # someone else ended the shell
                os.write(writes, b"\n")
    finally:
        os.close(writes)
