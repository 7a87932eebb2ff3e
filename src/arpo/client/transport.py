"""One call to the env-server: sent again where that is safe, and every failure typed.

Invariants
- Whatever goes wrong on the way to an answer is a ProblemError: the server's own problem, or backend_lost when there
  was no usable answer. No httpx error leaves this module.
- Everything that is sent may be sent twice: what is no repeat by nature carries a key or a seq by which the server
  tells. So the only question is for how long to try.
- Every attempt carries the current span as its traceparent: all of an operation's requests belong to the same one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from arpo.client.breaker import BreakerRules, Ticket
from arpo.client.circuit import Circuit, CircuitOpenError
from arpo.client.connections import ShardedTransport
from arpo.client.contact import Contact
from arpo.client.limits import Backoff, ClientTimeouts
from arpo.protocol import timing
from arpo.protocol.codec import MSGPACK, PROBLEM_JSON, CodecError, decode, encode, media_type
from arpo.protocol.problems import ConfigError, Problem, ProblemCode, ProblemError
from arpo.telemetry import tracing

log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

# The request never left this machine, so the server cannot have acted on it.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

# Statuses with which proxies say that the server behind them did not answer.
_GATEWAY_STATUSES = frozenset({502, 503, 504})


class UnansweredError(ProblemError):
    """backend_lost because there was no usable answer. sent: the server may have acted all the same."""

    def __init__(self, detail: str, *, sent: bool, retry_after_s: float | None = None) -> None:
        super().__init__(ProblemCode.BACKEND_LOST, detail, retry_after_s=retry_after_s)
        self.sent = sent


@dataclass(frozen=True)
class Answer:
    """A successful answer."""

    status: int
    encoding: str
    content: bytes
    url: str
    timing: str = ""
    """Where the operation's time went (`arpo.protocol.timing`), when the server says so."""

    def read(self, kind: type[M]) -> M:
        """The message in it. Raises ProblemError backend_lost when it is another."""
        try:
            return decode(kind, self.content, self.encoding)
        except CodecError as error:
            raise ProblemError(
                ProblemCode.BACKEND_LOST, f"{self.url} is no env-server of this version: {error}"
            ) from error


@dataclass(frozen=True)
class Call:
    """One request. hold_s: how long the server may wait before it answers (`wait_s` on the wire; None: not asked).

    read_s: the silence allowed beyond that, instead of the client's.
    """

    method: str
    path: str
    message: BaseModel | None = None
    lease: int | None = None
    hold_s: float | None = None
    headers: Mapping[str, str] | None = None
    read_s: float | None = None

    @property
    def query(self) -> dict[str, str | float]:
        """What the URL carries."""
        given = {"lease": self.lease, "wait_s": self.hold_s}
        return {name: value for name, value in given.items() if value is not None}


class Transport:
    """The connections to one env-server or gateway. contact: whether it answers.

    Raises ConfigError for a URL or a token that cannot work. http: another httpx transport, for tests.
    """

    def __init__(
        self,
        url: str,
        token: str,
        timeouts: ClientTimeouts,
        backoff: Backoff,
        breaker: BreakerRules,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"env-server URL {url!r} is not one; fix: e.g. http://127.0.0.1:18082")
        if not token or not token.isascii() or not token.isprintable():
            raise ConfigError(
                "the env-server token is empty or not printable ASCII; fix: copy the token file"
            )
        self.url = url.rstrip("/")
        self._timeouts = timeouts
        self._backoff = backoff
        self.contact = Contact()
        self._circuit = Circuit(breaker, self._probe, self.contact)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}", "Accept": MSGPACK},
            # One connection for each episode in flight; idle ones are dropped before the server drops them.
            transport=http or ShardedTransport(httpx.Limits(max_connections=None, keepalive_expiry=20.0)),
            # Desktops are near; a proxy that the environment sets for the internet would only lose them.
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._circuit.close()
        await self._http.__aexit__(kind, error, trace)

    async def quick(self, call: Call, attempts: int | None = None) -> Answer:
        """Send a request a few times, and fail at once while the circuit is open.

        attempts: at most so many, instead of the back-off's. Raises ProblemError: the server's, or backend_lost
        (UnansweredError).
        """
        limit = attempts or self._backoff.attempts
        sent = False
        for attempt in range(limit):
            try:
                return await self._attempt(call, await self._circuit.enter(time.monotonic()))
            except CircuitOpenError as error:
                raise self._unanswered(call, error, sent, attempt) from error
            except _NoAnswerError as error:
                sent = sent or error.sent
                if attempt + 1 == limit:
                    raise self._unanswered(call, error, sent, limit) from error
                log.debug("%s %s: attempt %d: %s", call.method, call.path, attempt + 1, error)
            await asyncio.sleep(self._backoff.pause_s(attempt))
        raise AssertionError("a call without attempts")

    async def patient(self, call: Call, outage_s: float) -> Answer:
        """Send a request until there is an answer, or until there was none for `outage_s` seconds: no attempt begins
        after that.

        Raises ProblemError: the server's, or backend_lost (UnansweredError).
        """
        until = None if self._circuit.closed else time.monotonic() + outage_s
        sent = False
        attempt = 0
        while True:
            try:
                ticket = await self._circuit.enter(until or time.monotonic() + outage_s)
                return await self._attempt(call, ticket)
            except CircuitOpenError as error:
                raise self._unanswered(call, error, sent, attempt) from error
            except _NoAnswerError as error:
                attempt += 1
                sent = sent or error.sent
                now = time.monotonic()
                until = until or now + outage_s
                pause_s = self._backoff.pause_s(attempt - 1)
                if now + pause_s > until:
                    raise self._unanswered(call, error, sent, attempt) from error
                log.debug("%s %s: attempt %d: %s", call.method, call.path, attempt, error)
            await asyncio.sleep(pause_s)

    async def glance(self, call: Call) -> Answer:
        """Send a request once, whatever the circuit says: for a caller who polls until there is an answer."""
        try:
            return await self._attempt(call, None)
        except _NoAnswerError as error:
            raise self._unanswered(call, error, error.sent, 1) from error

    async def _attempt(self, call: Call, ticket: Ticket | None) -> Answer:
        """One attempt; the circuit learns what came of it. Raises _NoAnswerError or the server's problem."""
        try:
            answer = await self._once(call)
        except _NoAnswerError as error:
            if ticket is not None:
                self._circuit.failed(ticket, str(error))
            raise
        except ProblemError as error:
            self._circuit.answered()
            if error.code is ProblemCode.REQUEST_TIMEOUT:
                # The link was too slow for the request, which therefore never took effect.
                raise _NoAnswerError(str(error), sent=False) from error
            raise
        self._circuit.answered()
        return answer

    async def _probe(self) -> str | None:
        patience = self._timeouts
        try:
            await self._once(Call("GET", "/healthz", read_s=min(patience.connect_s, patience.read_s)))
        except _NoAnswerError as error:
            return str(error)
        except ProblemError:
            return None
        return None

    async def _once(self, call: Call) -> Answer:
        body = None if call.message is None else encode(call.message, MSGPACK)
        headers = {**tracing.headers(), **(call.headers or {})}
        if body is not None:
            headers["Content-Type"] = MSGPACK
        limits = self._timeouts
        silence_s = (call.hold_s or 0.0) + (limits.read_s if call.read_s is None else call.read_s)
        timeout = httpx.Timeout(
            connect=limits.connect_s, read=silence_s, write=limits.write_s, pool=limits.pool_s
        )
        try:
            response = await self._http.request(
                call.method, call.path, content=body, headers=headers, params=call.query, timeout=timeout
            )
        except httpx.TransportError as error:
            raise _NoAnswerError(
                str(error) or type(error).__name__, sent=not isinstance(error, _NEVER_SENT)
            ) from error
        except httpx.DecodingError as error:
            raise _NoAnswerError(f"unreadable answer: {error}") from error
        encoding = media_type(response.headers.get("content-type"))
        if response.is_success:
            return Answer(
                response.status_code,
                encoding,
                response.content,
                self.url,
                response.headers.get(timing.HEADER, ""),
            )
        if encoding == PROBLEM_JSON:
            try:
                problem = Problem.model_validate_json(response.content)
            except ValidationError as error:
                raise _NoAnswerError(f"status {response.status_code} with an unreadable problem") from error
            raise ProblemError.of(problem)
        if response.status_code in _GATEWAY_STATUSES:
            raise _NoAnswerError(f"status {response.status_code} from something in between")
        raise ProblemError(
            ProblemCode.BACKEND_LOST,
            f"{call.method} {self.url}{call.path}: status {response.status_code}, no problem: is this an env-server?",
        )

    def _unanswered(self, call: Call, error: Exception, sent: bool, tried: int) -> UnansweredError:
        retry_after_s = error.retry_after_s if isinstance(error, CircuitOpenError) else None
        return UnansweredError(
            f"{call.method} {self.url}{call.path}: {error} (tried {tried}×)",
            sent=sent,
            retry_after_s=retry_after_s,
        )


class _NoAnswerError(Exception):
    """One attempt brought no answer of an env-server. sent: it may have acted all the same."""

    def __init__(self, reason: str, *, sent: bool = True) -> None:
        super().__init__(reason)
        self.sent = sent
