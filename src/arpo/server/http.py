"""The server's side of an HTTP connection, stricter than uvicorn's own.

Invariants
- A request whose header is not complete in time ends the connection: idle clients hold no connection for ever.
- What is no HTTP at all is answered with a problem, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from arpo.protocol.codec import PROBLEM_JSON
from arpo.protocol.problems import ProblemCode, ProblemError

MAX_HEADER_BYTES = 32 * 1024


def connection(header_timeout_s: float) -> type[H11Protocol]:
    """uvicorn's `http` class. header_timeout_s: from a connection's start, or from the first byte of a later request,
    to the end of its header.
    """

    class Connection(_Connection):
        limit_s = header_timeout_s

    return Connection


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: whoever runs the server decides when it stops."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield

    async def startup(self, sockets: Any = None) -> None:
        """As uvicorn's, and then tell."""
        await super().startup(sockets)
        self.accepting.set()


class _Connection(H11Protocol):
    limit_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, ProblemError(ProblemCode.INVALID_REQUEST, msg))

    def _watch(self) -> None:
        """Start the clock when a header has begun to arrive, stop it when a request is being answered."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        has_part_of_a_header = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if is_answering or self.transport.is_closing():
            self._unwatch()
        elif self._header is None and (self.cycle is None or has_part_of_a_header):
            self._header = self.loop.call_later(self.limit_s, self._late)

    def _unwatch(self) -> None:
        if self._header is not None:
            self._header.cancel()
            self._header = None

    def _late(self) -> None:
        self._header = None
        detail = f"the header of the request was not complete after {self.limit_s:g} s"
        self._refuse(408, ProblemError(ProblemCode.REQUEST_TIMEOUT, detail))

    def _refuse(self, status: int, error: ProblemError) -> None:
        self._unwatch()
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error.problem.model_dump_json(exclude_none=True).encode()
            headers = [
                ("content-type", PROBLEM_JSON),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
