"""The env-server, seen by the person who runs it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from arpo.client.breaker import BreakerRules
from arpo.client.limits import Backoff, ClientTimeouts
from arpo.client.transport import Call, Transport
from arpo.protocol.messages import Capacity, PoolStatus, ResetPool, SessionList


class Operator:
    """Async context manager around the calls that need a token with scope admin.

    Raises ConfigError for a URL or a token that cannot work; its methods raise ProblemError.
    """

    def __init__(self, url: str, token: str, timeouts: ClientTimeouts | None = None) -> None:
        self._transport = Transport(
            url, token, timeouts or ClientTimeouts(), Backoff(attempts=2), BreakerRules()
        )

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def capacity(self) -> Capacity:
        """How many desktops there are, and what they are doing."""
        return (await self._transport.quick(Call("GET", "/v1/capacity"))).read(Capacity)

    async def pool(self) -> PoolStatus:
        """Every desktop: its state, its failures and why."""
        return (await self._transport.quick(Call("GET", "/v1/pool"))).read(PoolStatus)

    async def sessions(self) -> SessionList:
        """Everybody's sessions that are not closed."""
        return (await self._transport.quick(Call("GET", "/v1/sessions"))).read(SessionList)

    async def reset_pool(self, *, sessions: bool = False) -> PoolStatus:
        """Put a fresh desktop in every place. sessions: end the sessions, too."""
        request = Call("POST", "/v1/pool/reset", ResetPool(sessions=sessions))
        return (await self._transport.quick(request)).read(PoolStatus)
