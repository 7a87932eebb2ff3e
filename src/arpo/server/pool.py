"""The desktops of one provider: who has which, and which are out of service.

Invariants
- A desktop is leased to at most one holder at a time, and at most `size` desktops are leased.
- A free desktop is clean: it is fresh, or it was cleaned after its last holder, in the background.
- A desktop that fails twice in a row (a start, a clean or a holder's reset, in any mix) is quarantined, with the reason,
  until a fresh one stands in its place; one that was lost is replaced at once.
- When the pool is left, every desktop is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from arpo.desktop.base import Desktop
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.providers.base import ProviderError
from arpo.telemetry import phases, tracing

log = logging.getLogger(__name__)

DesktopFactory = Callable[[], Awaitable[Desktop]]
"""Starts one desktop. Raises ProviderError or ProblemError."""

STRIKES = 2
"""Failures in a row that put a desktop into quarantine."""


class SlotState(StrEnum):
    """What a slot's desktop is doing."""

    STARTING = "starting"
    CLEANING = "cleaning"
    FREE = "free"
    LEASED = "leased"
    QUARANTINED = "quarantined"


class Verdict(Enum):
    """What a holder says about the desktop that it gives back."""

    USED = "used"
    """It works; cleaning makes it ready for the next holder."""
    RESET_FAILED = "reset failed"
    """There was no clean guest: counts as a failure."""
    LOST = "lost"
    """It is gone, or was interrupted and may still be at work: only a fresh one is known to be clean."""


@dataclass(eq=False)
class Slot:
    """A place for one desktop.

    reason: why the last attempt failed, while `strikes` is not 0. condemned: why the desktop is to be replaced as soon
    as its holder or its cleaning has finished with it.
    """

    index: int
    state: SlotState = SlotState.STARTING
    held: Desktop | None = None
    strikes: int = 0
    reason: str = ""
    condemned: str = ""
    retry_now: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def desktop(self) -> Desktop:
        """The desktop. Raises RuntimeError while there is none; a leased slot always has one."""
        if self.held is None:
            raise RuntimeError(f"desktop {self.index} is {self.state.value}")
        return self.held


@dataclass(frozen=True)
class SlotView:
    """What operators see of a slot. strikes: failures in a row; reason: of the last one, empty without any."""

    index: int
    state: SlotState
    strikes: int
    reason: str


@dataclass(frozen=True)
class PoolLimits:
    """Seconds: for one start, one clean, one stop, and before the first and the last restarts of a quarantined
    desktop.
    """

    start_s: float = 120.0
    clean_s: float = 120.0
    stop_s: float = 20.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0


@dataclass(eq=False)
class DesktopPool:
    """The desktops. Use `running_pool`; no method waits.

    size: how many may be leased at once; there are more slots when desktops are kept in reserve.
    """

    size: int
    slots: list[Slot]
    _factory: DesktopFactory
    _limits: PoolLimits
    _tasks: asyncio.TaskGroup
    _free: deque[Slot] = field(default_factory=deque)
    _renewals: set[asyncio.Task[None]] = field(default_factory=set)
    _draining: bool = False

    def lease(self) -> Slot:
        """A clean desktop, the one that has been free the longest.

        Raises ProblemError capacity when all are busy, start_failed when all are out of service.
        """
        if not self.available():
            raise self.shortage()
        slot = self._free.popleft()
        slot.state = SlotState.LEASED
        return slot

    def available(self) -> int:
        """How many desktops can be leased now."""
        return min(len(self._free), self.size - self.count(SlotState.LEASED))

    def reset_worked(self, slot: Slot) -> None:
        """Its holder's reset worked: earlier failures are forgotten."""
        slot.strikes, slot.reason = 0, ""

    def give_back(self, slot: Slot, verdict: Verdict, reason: str = "") -> None:
        """Take a desktop back. reason: what went wrong, unless it is `USED`."""
        if slot.state is not SlotState.LEASED:
            raise RuntimeError(f"desktop {slot.index} was given back, but it is {slot.state.value}")
        failed = verdict is Verdict.RESET_FAILED
        if failed:
            self._strike(slot, f"reset failed: {reason}")
        if verdict is Verdict.LOST:
            slot.condemned = slot.condemned or reason or "lost"
        if slot.condemned or (failed and slot.strikes >= STRIKES):
            self._replace(slot, failed=failed)
        else:
            slot.state = SlotState.CLEANING
            self._run(self._clean(slot))

    def reset_all(self, reason: str) -> None:
        """Put a fresh desktop into every slot and forget all failures, for operators who have fixed something.

        Quarantined slots are tried again at once; a leased desktop is replaced when it comes back, one that is being
        cleaned when that ends. A start that is under way already makes a fresh one.
        """
        self._free.clear()
        for slot in self.slots:
            slot.strikes, slot.reason = 0, ""
            match slot.state:
                case SlotState.LEASED | SlotState.CLEANING:
                    slot.condemned = reason
                case SlotState.FREE:
                    slot.condemned = reason
                    self._replace(slot)
                case SlotState.QUARANTINED:
                    slot.state = SlotState.STARTING
                    slot.retry_now.set()
                case SlotState.STARTING:
                    pass

    def drain(self) -> None:
        """Start and clean nothing any more; what is given back stays as it is until the end."""
        self._draining = True
        for renewal in self._renewals:
            renewal.cancel()

    def count(self, state: SlotState) -> int:
        """How many desktops are in a state, reserves included."""
        return sum(slot.state is state for slot in self.slots)

    def view(self) -> list[SlotView]:
        """All slots, for operators."""
        return [SlotView(slot.index, slot.state, slot.strikes, slot.reason) for slot in self.slots]

    def out_of_service(self) -> str:
        """The quarantined desktops with their reasons; empty when there are none."""
        return "; ".join(
            f"desktop {slot.index} is quarantined: {slot.reason}"
            for slot in self.slots
            if slot.state is SlotState.QUARANTINED
        )

    def shortage(self) -> ProblemError:
        """Why no desktop can be leased now."""
        busy = (SlotState.LEASED, SlotState.CLEANING, SlotState.STARTING)
        said = [f"{count} {state.value}" for state in busy if (count := self.count(state))]
        detail = f"no desktop of {self.size} is free: " + "; ".join(
            filter(None, [", ".join(said), self.out_of_service()])
        )
        hopeless = self.count(SlotState.QUARANTINED) == len(self.slots)
        return ProblemError(
            ProblemCode.START_FAILED if hopeless else ProblemCode.CAPACITY, detail, retry_after_s=0.5
        )

    def _strike(self, slot: Slot, reason: str) -> None:
        slot.strikes += 1
        slot.reason = reason
        log.warning("desktop %d, failure %d in a row: %s", slot.index, slot.strikes, reason)

    def _run(self, renewal: Coroutine[None, None, None]) -> None:
        """Work on a slot in the background."""
        if self._draining:
            renewal.close()
            return
        task = self._tasks.create_task(renewal, context=tracing.detached())
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)

    async def _clean(self, slot: Slot) -> None:
        """Make a slot's desktop clean, or put a fresh one into its place."""
        cleaned = await self._works(slot, "clean", slot.desktop.clean(), self._limits.clean_s)
        if cleaned and not slot.condemned:
            self._add_free(slot)
        else:
            self._replace(slot, failed=not cleaned)

    def _replace(self, slot: Slot, *, failed: bool = False) -> None:
        """Put a fresh desktop into the place of one that `failed`, or is to go for another reason."""
        if not self._draining:
            log.warning("desktop %d is replaced: %s", slot.index, slot.condemned or slot.reason)
        out_of_service = failed and slot.strikes >= STRIKES
        slot.state = SlotState.QUARANTINED if out_of_service else SlotState.STARTING
        self._run(self._fill(slot))

    async def _fill(self, slot: Slot) -> None:
        """Start a desktop in a slot, however often it takes; what was in it is closed."""

        async def start() -> None:
            slot.held = await self._factory()

        await self._close(slot)
        slot.condemned = ""
        while True:
            if slot.state is SlotState.QUARANTINED:
                await self._pause(slot)
            if await self._works(slot, "start", start(), self._limits.start_s):
                self._add_free(slot)
                return
            if slot.strikes >= STRIKES:
                slot.state = SlotState.QUARANTINED

    async def _pause(self, slot: Slot) -> None:
        """Wait before the next attempt: the longer, the more have failed, but not once an operator asks for it."""
        slot.retry_now.clear()
        doubled = self._limits.first_pause_s * 2.0 ** min(slot.strikes - STRIKES, 16)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(doubled, self._limits.longest_pause_s)):
                await slot.retry_now.wait()

    async def _works(self, slot: Slot, what: str, call: Awaitable[None], limit_s: float) -> bool:
        """Await something that a desktop or its provider does; when it fails, that is a strike."""
        try:
            # What is done in the background is no part of the request that happened to cause it.
            with phases.record():
                async with asyncio.timeout(limit_s) as limit:
                    await call
        except ProviderError as error:
            reason = str(error)
        except ProblemError as error:
            reason = error.problem.detail
        except Exception as error:
            # A provider may be anyone's code: what it did not foresee costs this desktop, not the others.
            if isinstance(error, TimeoutError) and limit.expired():
                reason = f"not done after {limit_s:g} s"
            else:
                log.exception("desktop %d: unexpected error (%s)", slot.index, what)
                reason = f"{type(error).__name__}: {error}"
        else:
            return True
        self._strike(slot, f"{what} failed: {reason}")
        return False

    def _add_free(self, slot: Slot) -> None:
        slot.state = SlotState.FREE
        self._free.append(slot)

    async def _close(self, slot: Slot) -> None:
        if slot.held is None:
            return
        try:
            async with asyncio.timeout(self._limits.stop_s):
                await slot.held.close()
        except Exception:
            # Whatever is left of it is stopped with its provider.
            log.exception("desktop %d could not be closed", slot.index)
        # Not before: a close that was cancelled half-way is repeated when the pool is left.
        slot.held = None

    async def _close_all(self) -> None:
        await asyncio.gather(*(self._close(slot) for slot in self.slots))


@asynccontextmanager
async def running_pool(
    factory: DesktopFactory, size: int, limits: PoolLimits | None = None, *, spares: int = 0
) -> AsyncIterator[DesktopPool]:
    """A pool whose desktops start at once, all in parallel, in the background; all are closed at the end.

    size: how many desktops can be leased at once. spares: how many more are kept, so that a lease need not wait while
    others are being cleaned.
    """
    async with asyncio.TaskGroup() as tasks:
        slots = [Slot(index) for index in range(size + spares)]
        pool = DesktopPool(size, slots, factory, limits or PoolLimits(), tasks)
        for slot in slots:
            pool._run(pool._fill(slot))
        try:
            yield pool
        finally:
            pool.drain()
            if pool._renewals:
                await asyncio.wait(pool._renewals)
            await pool._close_all()
