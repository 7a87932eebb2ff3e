"""Random interleavings of leases, verdicts, failures, operators and a shutdown against the pool's invariants.

The desktops know whether they are dirty. Starts and cleans wait until a rule ends them, so no time passes and every
interleaving can be reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.providers.base import ProviderError
from arpo.server.pool import STRIKES, DesktopPool, PoolLimits, Slot, SlotState, Verdict, running_pool

LIMITS = PoolLimits(start_s=600, clean_s=600, first_pause_s=0.0)

OUTCOMES = st.sampled_from([None, None, ProviderError("no guest"), KeyError("surprise")])


class Desk:
    """A desktop that knows whether it is dirty and how often it was closed."""

    screen = (1, 1)

    def __init__(self) -> None:
        self.dirty = False
        self.closed = 0
        self.cleaning: asyncio.Future[None] | None = None

    async def clean(self) -> None:
        self.cleaning = asyncio.get_running_loop().create_future()
        try:
            await self.cleaning
        finally:
            self.cleaning = None
        self.dirty = False

    async def close(self) -> None:
        self.closed += 1


class PoolMachine(RuleBasedStateMachine):
    """One pool, several holders; `strikes` is the model of each slot's failures in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.desks: list[Desk] = []
        self.starts: list[asyncio.Future[None]] = []
        self.leased: list[Slot] = []
        self.drained = False

    # Driving the loop

    def settle(self) -> None:
        """Let everything happen that is not waiting for a rule."""

        async def spin() -> None:
            for _ in range(30):
                await asyncio.sleep(0)
            await asyncio.sleep(0.0001)  # a pause of no length is a timer that is due
            for _ in range(30):
                await asyncio.sleep(0)

        self.runner.run(spin())

    async def factory(self) -> Any:
        gate = asyncio.get_running_loop().create_future()
        self.starts.append(gate)
        try:
            await gate
        finally:
            self.starts.remove(gate)
        self.desks.append(Desk())
        return self.desks[-1]

    @initialize(size=st.integers(1, 3), spares=st.integers(0, 2))
    def begin(self, size: int, spares: int) -> None:
        self.size = size
        self.strikes = [0] * (size + spares)
        ready: asyncio.Future[DesktopPool] = self.runner.get_loop().create_future()
        self.leave = asyncio.Event()

        async def life() -> None:
            async with running_pool(self.factory, size, LIMITS, spares=spares) as pool:
                ready.set_result(pool)
                await self.leave.wait()

        self.life = self.runner.get_loop().create_task(life())

        async def wait() -> DesktopPool:
            return await ready

        self.pool = self.runner.run(wait())
        self.settle()

    # What holders do

    @rule()
    def lease(self) -> None:
        free = [slot for slot in self.pool.slots if slot.state is SlotState.FREE]
        expected = min(len(free), self.size - len(self.leased))
        assert self.pool.available() == expected
        if expected:
            slot = self.pool.lease()
            assert slot not in self.leased
            assert not slot.desktop.dirty
            self.leased.append(slot)
            return
        with pytest.raises(ProblemError) as caught:
            self.pool.lease()
        hopeless = all(slot.state is SlotState.QUARANTINED for slot in self.pool.slots)
        assert caught.value.code is (ProblemCode.START_FAILED if hopeless else ProblemCode.CAPACITY)

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def reset_works(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.leased))
        slot.desktop.dirty = True
        self.pool.reset_worked(slot)
        self.strikes[slot.index] = 0

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), verdict=st.sampled_from(Verdict))
    def give_back(self, data: st.DataObject, verdict: Verdict) -> None:
        slot = data.draw(st.sampled_from(self.leased))
        desk = slot.desktop
        desk.dirty = True
        self.leased.remove(slot)
        if verdict is Verdict.RESET_FAILED:
            self.strikes[slot.index] += 1
        self.pool.give_back(slot, verdict, "as told")
        if not self.drained:
            out = verdict is Verdict.RESET_FAILED and self.strikes[slot.index] >= STRIKES
            assert (slot.state is SlotState.QUARANTINED) == out
        self.settle()
        if verdict is Verdict.LOST and not self.drained:
            assert desk.closed

    # What providers do

    def failed(self, what: Callable[[], None]) -> None:
        """A start or clean failed: exactly one slot has one strike more, and the second in a row quarantines it."""
        what()
        self.settle()
        changed = [slot for slot in self.pool.slots if slot.strikes != self.strikes[slot.index]]
        assert len(changed) == 1
        self.strikes[changed[0].index] += 1
        quarantined = self.strikes[changed[0].index] >= STRIKES
        assert changed[0].state is (SlotState.QUARANTINED if quarantined else SlotState.STARTING)
        assert changed[0].reason

    @precondition(lambda self: self.starts and not self.drained)
    @rule(data=st.data(), outcome=OUTCOMES)
    def start_ends(self, data: st.DataObject, outcome: Exception | None) -> None:
        gate = data.draw(st.sampled_from(range(len(self.starts))))
        if outcome is None:
            self.starts[gate].set_result(None)
            self.settle()
        else:
            self.failed(lambda: self.starts[gate].set_exception(outcome))

    @precondition(lambda self: any(desk.cleaning for desk in self.desks))
    @rule(data=st.data(), outcome=OUTCOMES)
    def clean_ends(self, data: st.DataObject, outcome: Exception | None) -> None:
        desk = data.draw(st.sampled_from([desk for desk in self.desks if desk.cleaning]))
        if outcome is None:
            desk.cleaning.set_result(None)
            self.settle()
        else:
            self.failed(lambda: desk.cleaning.set_exception(outcome))

    # What operators do

    @rule()
    def reset_all(self) -> None:
        replaced = [slot.held for slot in self.pool.slots if slot.state is SlotState.FREE]
        self.pool.reset_all("an operator asked")
        self.strikes = [0] * len(self.strikes)
        assert not self.pool.available()
        self.settle()
        if not self.drained:
            assert all(desk.closed for desk in replaced)

    @rule()
    def drain(self) -> None:
        self.pool.drain()
        self.drained = True
        self.settle()
        assert not self.starts
        assert not any(desk.cleaning for desk in self.desks)

    # What always holds

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "pool"):
            return
        slots = self.pool.slots
        assert self.pool.count(SlotState.LEASED) == len(self.leased) <= self.size
        assert all(slot.state is SlotState.LEASED for slot in self.leased)
        held = [slot.held for slot in slots if slot.held is not None]
        assert len(set(map(id, held))) == len(held)
        for slot in slots:
            if slot.state is SlotState.FREE:
                assert not slot.desktop.dirty
                assert not slot.desktop.closed
        assert [desk for desk in self.desks if not desk.closed] == [d for d in self.desks if d in held]
        assert [view.strikes for view in self.pool.view()] == self.strikes

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self.leave.set()

                async def end() -> None:
                    await self.life

                self.runner.run(end())
                assert [desk.closed for desk in self.desks] == [1] * len(self.desks)
        finally:
            self.runner.close()


TestDesktopPool = PoolMachine.TestCase
TestDesktopPool.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
