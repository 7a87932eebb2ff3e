"""The env-server, seen from the trainer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import httpx

from arpo.client.breaker import BreakerRules
from arpo.client.contact import Contact
from arpo.client.creation import Creation
from arpo.client.limits import Backoff, ClientTimeouts
from arpo.client.session import Session
from arpo.client.transport import Call, Transport
from arpo.protocol.messages import Capacity, CreateSession, Ready, SessionCreated, SessionOptions
from arpo.protocol.problems import ProblemCode, ProblemError

log = logging.getLogger(__name__)
_READY_POLL_S, _LONGEST_READY_POLL_S = 0.25, 2.0


class EnvClient:
    """Async context manager around the session API v1 of an env-server or a gateway. Safe to use
    concurrently.

    url: e.g. `http://127.0.0.1:18082`. token: one of the server's. http: another httpx transport, for tests.
    It outlives its server: after a restart new sessions work, old ones raise backend_lost. breaker: when to leave a
    server that does not answer alone; all sessions share it.
    Raises ConfigError for a URL or a token that cannot work; its methods raise ProblemError.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeouts: ClientTimeouts | None = None,
        backoff: Backoff | None = None,
        breaker: BreakerRules | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeouts = timeouts or ClientTimeouts()
        self._backoff = backoff or Backoff()
        self._transport = Transport(
            url, token, self._timeouts, self._backoff, breaker or BreakerRules(), http
        )
        # A session that nobody else holds is kept alive by its heartbeat or by its release.
        self._sessions: WeakSet[Session] = WeakSet()
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + self._timeouts.close_s
        try:
            await asyncio.gather(*(session.close() for session in self._sessions))
            await self._settle(deadline)
        finally:
            for task in self._background:
                task.cancel()
            await self._transport.__aexit__(kind, error, trace)

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._transport.url

    @property
    def contact(self) -> Contact:
        """Whether the server answers."""
        return self._transport.contact

    async def capacity(self) -> Capacity:
        """How many desktops the server has, and what they are doing."""
        return (await self._transport.quick(Call("GET", "/v1/capacity"))).read(Capacity)

    async def ready(self) -> tuple[bool, str]:
        """Whether the server can lease a desktop now, and why not (or which desktops are out of service).
        Asks once.
        """
        try:
            answer = await self._transport.glance(Call("GET", "/readyz"))
        except ProblemError as error:
            return False, error.problem.detail
        return True, answer.read(Ready).note

    async def wait_ready(
        self, timeout_s: float | None, on_progress: Callable[[str], None] | None = None
    ) -> Capacity:
        """Wait until the server has a desktop that works: free now, or leased and free later.

        timeout_s: None: for ever. on_progress: called with the reason whenever why it is not ready changes.
        Raises ProblemError unauthorized at once; start_failed with the last reason after `timeout_s` seconds.
        """
        begun = time.monotonic()
        told = ""
        while True:
            ready, reason = await self.ready()
            capacity = await self._working(ready)
            if capacity is not None:
                return capacity
            if on_progress is not None and reason != told:
                on_progress(reason)
                told = reason
            waited_s = time.monotonic() - begun
            if timeout_s is not None and waited_s >= timeout_s:
                raise ProblemError(
                    ProblemCode.START_FAILED, f"{self.url} is not ready after {timeout_s:g} s: {reason}"
                )
            await asyncio.sleep(min(_LONGEST_READY_POLL_S, max(_READY_POLL_S, waited_s / 20)))

    async def open_session(self, task: Mapping[str, Any], options: SessionOptions | None = None) -> Session:
        """Lease a desktop in a task's initial state. Waits for a free one, then for its reset.

        task: an OSWorld task JSON. Raises ProblemError, capacity when no desktop became free in time; backend_lost
        within seconds when there is no answer. Cancelled, it leaves no session behind.
        """
        request = CreateSession(task=dict(task), options=options or SessionOptions())
        session, asked = await self._created(request)
        try:
            await session.wait_reset(asked)
        except BaseException:
            await session.close()
            raise
        return session

    async def attach(
        self, session_id: str, lease: int, *, idle_timeout_s: float = SessionOptions().idle_timeout_s
    ) -> Session:
        """Take up a session again that a client which is no more has opened: after a restart of the trainer, say.

        Waits until its desktop is at rest. The session then stands at the seq that the server applied last. Was a
        step on its way when the client ended, send it again with its `seq`: it is applied unless it has been.
        idle_timeout_s: the session's own. Raises ProblemError: why the session is over, or lease_lost; it leaves the
        session as it was then.
        """
        session = self._session(session_id, lease, idle_timeout_s)
        await session.resume()
        self._sessions.add(session)
        return session

    async def _created(self, request: CreateSession) -> tuple[Session, float]:
        """The session, and when it was asked for."""

        def session_of(created: SessionCreated) -> Session:
            return self._session(created.session_id, created.lease, request.options.idle_timeout_s)

        async def release(created: SessionCreated) -> None:
            await session_of(created).close()

        creation = Creation(self._transport, request, self._timeouts, self._backoff, release)
        try:
            session = session_of(await creation.made())
        except BaseException:
            self._in_background(creation.undo())
            raise
        self._sessions.add(session)
        return session, creation.asked

    def _session(self, session_id: str, lease: int, idle_timeout_s: float) -> Session:
        return Session(
            self._transport, session_id, lease, self._timeouts, idle_timeout_s, self._in_background
        )

    async def _working(self, ready: bool) -> Capacity | None:
        try:
            capacity = (await self._transport.glance(Call("GET", "/v1/capacity"))).read(Capacity)
        except ProblemError as error:
            if error.code is ProblemCode.UNAUTHORIZED:
                raise
            return None
        return capacity if ready or capacity.busy else None

    def _in_background(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _settle(self, deadline: float) -> None:
        """Let releases end that are still on their way; one may begin another."""
        while self._background and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(self._background, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if self._background:
            log.warning(
                "%s: %d sessions without an answer to their release; they end by their idle time-out",
                self.url,
                len(self._background),
            )
