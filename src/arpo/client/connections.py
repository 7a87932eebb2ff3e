"""Connections of hundreds of sessions to one server.

Invariant: requests about one session always take the same pool, and no pool serves more than its share of the sessions.
A pool looks at all of its connections for every request, so one pool for all of them would cost each session time in
proportion to the number of sessions.
"""

from __future__ import annotations

import itertools
import zlib
from types import TracebackType
from typing import Self

import httpx

POOLS = 32
_SESSION_DEPTH = 3  # /v1/sessions/<id>


class ShardedTransport(httpx.AsyncBaseTransport):
    """An httpx transport over several pools."""

    def __init__(self, limits: httpx.Limits) -> None:
        tls = httpx.create_ssl_context(trust_env=False)  # one for all: it takes tens of milliseconds
        self._pools = [
            httpx.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits) for _ in range(POOLS)
        ]
        self._turn = itertools.cycle(self._pools)

    async def __aenter__(self) -> Self:
        for pool in self._pools:
            await pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        for pool in self._pools:
            await pool.__aexit__(kind, error, trace)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request over its session's pool; one about no session over any."""
        return await self._pool(request.url.path).handle_async_request(request)

    def _pool(self, path: str) -> httpx.AsyncHTTPTransport:
        parts = path.split("/")[1 : _SESSION_DEPTH + 1]
        if len(parts) < _SESSION_DEPTH:
            return next(self._turn)
        return self._pools[zlib.crc32(parts[-1].encode()) % POOLS]
