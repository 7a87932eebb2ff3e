"""A guest is paused only while nobody asks it anything, and a request never meets a paused one."""

from __future__ import annotations

import asyncio

import pytest

from arpo.guest_client import GuestError
from arpo.providers.base import ProviderError
from arpo.providers.osworld.running import Rest


class Machine:
    """Refuses what does not fit its state, as hypervisors do; slow to pause."""

    def __init__(self) -> None:
        self.paused = False
        self.broken = False
        self.pauses = 0

    async def pause(self) -> None:
        assert not self.broken
        if self.paused:
            raise ProviderError("already paused")
        self.paused = True
        self.pauses += 1
        await asyncio.sleep(0.2)

    async def resume(self) -> None:
        if self.broken or not self.paused:
            raise ProviderError("not paused")
        self.paused = False


def rest_of(machine: Machine, after_s: float | None = None) -> Rest:
    return Rest(machine.pause, machine.resume, after_s)


async def ask(rest: Rest, machine: Machine, for_s: float = 0.0) -> None:
    async with rest.awake():
        assert not machine.paused
        await asyncio.sleep(for_s)
        assert not machine.paused


def test_a_pause_that_is_cancelled_half_way_does_not_leave_a_frozen_guest() -> None:
    async def story() -> None:
        machine = Machine()
        rest = rest_of(machine)
        pausing = asyncio.create_task(rest.pause_guest())
        await asyncio.sleep(0.05)
        pausing.cancel()
        await ask(rest, machine)
        await rest.pause_guest()  # and it goes on as before
        assert machine.paused
        await ask(rest, machine)

    asyncio.run(story())


def test_requests_and_pauses_at_random_times_never_meet() -> None:
    async def story() -> None:
        machine = Machine()
        rest = rest_of(machine, after_s=0.01)
        for round_ in range(12):
            await asyncio.gather(*(ask(rest, machine, 0.003 * n) for n in range(round_ % 4)))
            await asyncio.sleep(0.004 * round_)
        assert machine.pauses > 1
        await rest.end()

    asyncio.run(story())


def test_a_request_in_the_middle_of_a_pause_waits_for_it_and_wakes_the_guest() -> None:
    async def story() -> None:
        machine = Machine()
        rest = rest_of(machine)
        pausing = asyncio.create_task(rest.pause_guest())
        await asyncio.sleep(0.05)
        await ask(rest, machine)
        await pausing
        assert (machine.pauses, machine.paused) == (1, False)

    asyncio.run(story())


def test_a_guest_that_cannot_be_woken_is_a_guest_error() -> None:
    async def story() -> None:
        machine = Machine()
        rest = rest_of(machine)
        await rest.pause_guest()
        machine.broken = True
        with pytest.raises(GuestError, match="not paused"):
            await ask(rest, machine)

    asyncio.run(story())
