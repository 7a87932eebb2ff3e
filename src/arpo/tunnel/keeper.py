"""Keeps a tunnel up: connects, looks whether it works, connects again.

Invariants
- At most one ssh runs.
- Every change is told in one line, once; the same reason again only says when the next try is.
- "ready" is said only after the env-server has answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from arpo.client.limits import Backoff
from arpo.console import Failed
from arpo.scratch import ScratchFolder
from arpo.tunnel.connection import Connection, connection
from arpo.tunnel.readiness import Readiness, here, through
from arpo.tunnel.reasons import Reason
from arpo.tunnel.settings import TunnelSettings, ssh_command


@dataclass(frozen=True)
class Pace:
    """Seconds. connect_s: for a connection to come up. look_s: between two looks at the env-server, first_look_s: while
    it is not ready. stable_s: a connection that stood for this long makes the back-off begin anew.
    """

    connect_s: float = 60.0
    look_s: float = 30.0
    first_look_s: float = 2.0
    stable_s: float = 30.0
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=1.0, longest_s=30.0))


class Keeper:
    """Keeps one tunnel. say: takes a line for a person. ssh: path of the program."""

    def __init__(
        self, settings: TunnelSettings, ssh: str, say: Callable[[str], None], pace: Pace | None = None
    ) -> None:
        self._settings = settings
        self._ssh = ssh
        self._say = say
        self._pace = pace or Pace()
        self._told_refused = False

    async def run(self) -> None:
        """Until it is cancelled. Raises Failed when no further try can help."""
        failures = 0
        last = ""
        # Paths of sockets must be short, and a Mac's own temporary folder is not.
        scratch = ScratchFolder("arpo-tunnel-", Path("/tmp"))  # noqa: S108 - mode 0700, made by mkdtemp
        try:
            while True:
                came_up, reason = await self._once(scratch.path)
                if reason.lasting:
                    raise Failed(reason.text)
                if came_up is not None:
                    stood_s = time.time() - came_up
                    self._say(f"lost after {_duration(stood_s)}: {reason.text}")
                    failures = 0 if stood_s >= self._pace.stable_s else failures
                pause_s = self._pace.backoff.pause_s(failures)
                failures += 1
                if came_up is None and reason.text != last:
                    self._say(f"not connected: {reason.text}")
                last = "" if came_up is not None else reason.text
                self._say(f"next try in {pause_s:.0f} s")
                await asyncio.sleep(pause_s)
        finally:
            scratch.remove()

    async def _once(self, folder: Path) -> tuple[float | None, Reason]:
        """One connection, to its end: when it came up, if it did, and why it ended."""
        settings = self._settings
        check = folder / "check"
        known_hosts = settings.known_hosts
        if settings.host_key is not None:
            known_hosts = folder / "known_hosts"
            known_hosts.write_text(f"{settings.to.known_as} {settings.host_key}\n", encoding="ascii")
        else:
            known_hosts.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = ssh_command(self._ssh, settings, known_hosts, check)
        async with connection(command, settings, self._refused) as running:
            ended = asyncio.create_task(running.ended())
            up = asyncio.create_task(running.up.wait())
            try:
                await asyncio.wait(
                    {ended, up}, timeout=self._pace.connect_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not running.up.is_set():
                    if not ended.done():
                        return None, Reason(
                            f"{settings.to.host} did not let the tunnel up within {self._pace.connect_s:g} s"
                        )
                    return None, await ended
                came_up = time.time()
                self._say(
                    f"connected to {settings.to}: its port {settings.remote.port} leads to {settings.env} here"
                )
                return came_up, await self._watched(running, ended, check)
            finally:
                up.cancel()
                ended.cancel()
                await asyncio.wait({up, ended})

    async def _watched(self, running: Connection, ended: asyncio.Task[Reason], check: Path) -> Reason:
        """Tell how the env-server is, whenever that changes, until the connection ends."""
        told: str | None = None
        while not ended.done():
            ready, line = await self._look(check)
            if line != told and not ended.done():
                self._say(line)
                told = line
            await asyncio.wait({ended}, timeout=self._pace.look_s if ready else self._pace.first_look_s)
        return await ended

    async def _look(self, check: Path) -> tuple[bool, str]:
        """Whether a desktop can be leased, and what to say of it."""
        url = self._settings.env_url
        found = await through(check)
        if found is not None:
            return _said(found, f"the env-server at {url} answers through the tunnel")
        local = await here(url)
        if local is None:
            return (
                False,
                f"no env-server answers at {url} here; fix: start arpo-env-server on this machine, or --env",
            )
        return _said(
            local,
            f"the env-server at {url} answers here; the far side lets nobody back, so the way from there is unproven",
        )

    def _refused(self) -> None:
        if not self._told_refused and self._settings.otlp is not None:
            self._told_refused = True
            self._say(
                f"the cluster's sshd refuses {self._settings.otlp.connect}; fix: permit it in the chart's tunnel values "
                "(ARPO_TUNNEL_PERMIT_OPEN), or end --otlp"
            )


def _said(found: Readiness, how: str) -> tuple[bool, str]:
    if found.ready:
        return True, f"ready: {how}"
    return False, f"connected, not ready: {how}, but no desktop can be leased: {found.detail}"


def _duration(seconds: float) -> str:
    """For people: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
