"""The circuit breaker at work: callers wait for one probe instead of all asking a server that is gone.

Invariant: while the circuit is not closed the only request on its way is the probe, however many callers wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from arpo.client.breaker import BreakerRules, CircuitBreaker, CircuitState, Ticket
from arpo.client.contact import Contact


class CircuitOpenError(Exception):
    """The server did not answer lately and nobody may ask it now. retry_after_s: until that changes, perhaps."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Circuit:
    """One server's breaker, shared by everything that talks to it. contact: told what becomes of attempts.

    probe: a small request that touches nothing; why there was no answer, or None when there was one.
    """

    def __init__(
        self, rules: BreakerRules, probe: Callable[[], Awaitable[str | None]], contact: Contact | None = None
    ) -> None:
        self._rules = rules
        self._breaker = CircuitBreaker(rules)
        self._probe = probe
        self._probing: asyncio.Task[None] | None = None
        self._reason = ""
        self._contact = contact or Contact()

    @property
    def closed(self) -> bool:
        """Whether attempts may be made without waiting."""
        return self._breaker.state is CircuitState.CLOSED

    async def enter(self, until: float) -> Ticket:
        """Leave for an attempt; waits for a probe to allow it until `until` (on the monotonic clock).

        Who finds that a probe is due makes it, and waits for its end in any case. Raises CircuitOpenError.
        """
        while True:
            now = time.monotonic()
            ticket = self._breaker.admit(now)
            if ticket is None:
                probe_in_s = self._breaker.wait_s(now)
                if now >= until:
                    raise CircuitOpenError(self._reason, probe_in_s or self._rules.first_s)
                await self._pause(min(until - now, probe_in_s or until - now))
            elif ticket.probe:
                self._probing = asyncio.create_task(self._ask(ticket), name="circuit probe")
                await asyncio.wait({self._probing})
            else:
                return ticket

    def answered(self) -> None:
        """An attempt got an answer, be it a problem."""
        self._breaker.answered()
        self._contact.regain()

    def failed(self, ticket: Ticket, reason: str) -> None:
        """An attempt got no answer."""
        self._reason = reason
        self._contact.lose(reason)
        self._breaker.failed(ticket, time.monotonic())

    def close(self) -> None:
        """Give up a probe that is on its way."""
        if self._probing is not None:
            self._probing.cancel()

    async def _pause(self, seconds: float) -> None:
        """Until the probe on its way has ended, or for some time when there is none."""
        if self._probing is not None and not self._probing.done():
            await asyncio.wait({self._probing}, timeout=seconds)
        else:
            await asyncio.sleep(seconds)

    async def _ask(self, ticket: Ticket) -> None:
        try:
            reason = await self._probe()
        except BaseException:
            self._breaker.abandoned(ticket, time.monotonic())
            raise
        if reason is None:
            self.answered()
        else:
            self.failed(ticket, reason)
