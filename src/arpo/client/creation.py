"""The creation of one session, in as many requests as it takes.

Invariant: whoever gives a creation up, by cancelling it or because it failed, leaves no session behind. Its requests
share a key, so all of them together make one session at most; and only the key can name that session while no reply
has named it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from arpo.client.limits import Backoff, ClientTimeouts
from arpo.client.transport import Call, Transport, UnansweredError
from arpo.protocol.messages import CreateSession, SessionCreated
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.telemetry import names, tracing
from arpo.telemetry.phases import phase

log = logging.getLogger(__name__)

# What passes by itself: desktops become free, or start after all.
_SHORTAGES = frozenset({ProblemCode.CAPACITY, ProblemCode.START_FAILED})


class Creation:
    """Use `made`; if that raises, whatever it raises, run `undo`.

    release: gives back a session that nobody wants any more. asked: when the last request was made (`time.monotonic`).
    """

    def __init__(
        self,
        transport: Transport,
        request: CreateSession,
        timeouts: ClientTimeouts,
        backoff: Backoff,
        release: Callable[[SessionCreated], Awaitable[None]],
    ) -> None:
        self._transport = transport
        self._call = Call(
            "POST", "/v1/sessions", request, headers={"Idempotency-Key": secrets.token_urlsafe(24)}
        )
        self._timeouts = timeouts
        self._backoff = backoff
        self._release = release
        self._idle_timeout_s = request.options.idle_timeout_s
        self._attempt: asyncio.Task[SessionCreated] | None = None
        self._unanswered = False
        self.asked = time.monotonic()

    async def made(self) -> SessionCreated:
        """The session, as soon as there is a desktop for it.

        Raises ProblemError: a shortage that lasted for `capacity_s`; backend_lost after a few attempts without an
        answer, at once while the circuit is open.
        """
        began = time.monotonic()
        try:
            with phase("lease"):
                return await self._leased(began + self._timeouts.capacity_s)
        finally:
            tracing.finished(names.LEASE, began, time.monotonic() - began)

    async def _leased(self, deadline: float) -> SessionCreated:
        shortages = failures = 0
        while True:
            # A task of its own: cancelled half-way, it could not tell whether there is a session.
            self._attempt = asyncio.create_task(self._ask())
            try:
                return await asyncio.shield(self._attempt)
            except UnansweredError as error:
                failures += 1
                if failures >= self._backoff.attempts or error.problem.retry_after_s is not None:
                    raise
                pause_s = self._backoff.pause_s(failures - 1)
            except ProblemError as error:
                failures = 0
                shortages += 1
                pause_s = self._pause_s(error, shortages)
                if error.code not in _SHORTAGES or time.monotonic() + pause_s > deadline:
                    raise
            await asyncio.sleep(pause_s)

    async def undo(self) -> None:
        """Release the session, if there is one or may be one yet: a request that was given up can still arrive."""
        try:
            created = await self._known()
        except ProblemError as error:
            # By now the server would have released it for its silence.
            log.debug("a creation that was given up: %s", error)
            return
        if created is not None:
            await self._release(created)

    async def _ask(self) -> SessionCreated:
        self.asked = time.monotonic()
        try:
            answer = await self._transport.quick(self._call, attempts=1)
        except UnansweredError as error:
            self._unanswered = self._unanswered or error.sent
            raise
        return answer.read(SessionCreated)

    async def _known(self) -> SessionCreated | None:
        """The session of this key; None when no request can have made it."""
        if self._attempt is not None:
            try:
                return await self._attempt
            except ProblemError:
                if not self._unanswered:
                    return None
        deadline = time.monotonic() + self._idle_timeout_s
        shortages = 0
        while True:
            try:
                answer = await self._transport.patient(self._call, deadline - time.monotonic())
                return answer.read(SessionCreated)
            except ProblemError as error:
                # No desktop for this request; but an earlier one that is still on its way may get one.
                shortages += 1
                pause_s = self._pause_s(error, shortages)
                if error.code not in _SHORTAGES or time.monotonic() + pause_s > deadline:
                    raise
            await asyncio.sleep(pause_s)

    def _pause_s(self, error: ProblemError, times: int) -> float:
        return max(self._backoff.pause_s(times - 1), error.problem.retry_after_s or 0.0)
