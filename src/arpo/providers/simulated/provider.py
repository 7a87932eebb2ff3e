"""The provider of simulated desktops. Faults come from constructor arguments only, in plain sight of a test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping

from arpo.protocol.problems import ConfigError
from arpo.providers.base import Guest, ProviderError
from arpo.providers.simulated.guest import SimulatedGuest

SMALLEST_SCREEN = (640, 480)
"""Windows and icons have fixed places; a larger screen only shows more of the desk."""


class SimulatedProvider:
    """Starts desktops in this process.

    screen: width and height in pixels, at least `SMALLEST_SCREEN`.
    step_latency_s, reset_latency_s: how long a step, and a start or reset, take at least.
    lose_guest_after, freeze_after: every guest is lost, or answers nothing any more, when it is to perform the next
    batch of actions after this many; None: never.
    fail_resets: how many starts and resets fail before the first succeeds.
    fail_reads: files, folders and the accessibility tree cannot be read, so that evaluators fail.
    keep_stopped: `guests` keeps those that were stopped, so that a test can count what was done to all of them.
    """

    name = "simulated"

    def __init__(
        self,
        screen: tuple[int, int] = SMALLEST_SCREEN,
        *,
        step_latency_s: float = 0.0,
        reset_latency_s: float = 0.0,
        lose_guest_after: int | None = None,
        freeze_after: int | None = None,
        fail_resets: int = 0,
        fail_reads: bool = False,
        keep_stopped: bool = False,
    ) -> None:
        if screen[0] < SMALLEST_SCREEN[0] or screen[1] < SMALLEST_SCREEN[1]:
            wanted, got = ("x".join(map(str, size)) for size in (SMALLEST_SCREEN, screen))
            raise ConfigError(f"the simulated desktop needs a screen of at least {wanted}, got {got}")
        self._screen = screen
        self._step_latency_s = step_latency_s
        self._reset_latency_s = reset_latency_s
        self._lose_guest_after = lose_guest_after
        self._freeze_after = freeze_after
        self._fail_reads = fail_reads
        self._keep_stopped = keep_stopped
        self._failures_left = fail_resets
        self._numbers = itertools.count(1)
        self._guests: dict[str, SimulatedGuest] = {}

    @property
    def guests(self) -> Mapping[str, SimulatedGuest]:
        """The guests that are running, by id. No two guests ever have the same id, not even before and after a reset."""
        return self._guests

    async def preflight(self) -> None:
        """Nothing is needed."""

    async def start(self) -> Guest:
        """A fresh desktop."""
        if self._reset_latency_s:
            await asyncio.sleep(self._reset_latency_s)
        if self._failures_left:
            self._failures_left -= 1
            raise ProviderError("injected failure of the simulated provider")
        client = SimulatedGuest(
            self._screen,
            step_latency_s=self._step_latency_s,
            lost_after=self._lose_guest_after,
            frozen_after=self._freeze_after,
            fails_reads=self._fail_reads,
        )
        guest_id = f"simulated-{next(self._numbers)}"
        self._guests[guest_id] = client
        return Guest(id=guest_id, client=client, screen=self._screen)

    async def reset(self, guest: Guest) -> Guest:
        """A fresh desktop in place of a used one."""
        await self.stop(guest)
        return await self.start()

    async def expose(self, guest: Guest) -> Guest:
        """The guest as it is: it listens nowhere."""
        return guest

    async def pause(self, guest: Guest) -> None:
        """Nothing goes on between calls."""

    async def resume(self, guest: Guest) -> None:
        """Nothing to undo."""

    async def stop(self, guest: Guest) -> None:
        """Calls to the guest fail from now on."""
        client = self._guests.get(guest.id)
        if client is not None:
            client.lose()
            if not self._keep_stopped:
                del self._guests[guest.id]

    async def close(self) -> None:
        """Stop every guest."""
        for client in self._guests.values():
            client.lose()
        if not self._keep_stopped:
            self._guests.clear()
