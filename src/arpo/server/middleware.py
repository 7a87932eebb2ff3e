"""What stands before the routes: the trace, the bearer token, the size and the pace of a body, and MessagePack bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from arpo.protocol.codec import JSON, MSGPACK, CodecError, media_type, msgpack_to_json
from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.server.callers import Caller
from arpo.server.errors import ProblemResponses
from arpo.server.tokens import TokenFile
from arpo.telemetry import tracing

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/health"})
"""What a probe that holds no token may ask."""

DROPPED_BYTES = 64 * 1024 * 1024
"""How much of a body that is too large is read and dropped: a client that is still sending sees no answer."""


Anonymous = Callable[[Scope], Caller | None]
"""Who a request without a token comes from; None when it needs one. Raises ProblemError forbidden."""


class TraceContext:
    """Makes a request, and the operations that it begins, part of the trace that its `traceparent` names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] == "http":
            # without the header, too: uvicorn begins a pipelined request in the context of the one before
            tracing.adopt(header(scope, tracing.TRACEPARENT.encode()).decode("latin-1"))
        await self._app(scope, receive, send)


class BearerAuth:
    """Lets requests with a valid token through, with their `Caller` in `request.state.caller`; everything else is
    `unauthorized`, unknown paths included.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: TokenFile,
        problem_response: ProblemResponses,
        anonymous: Anonymous | None = None,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._problem_response = problem_response
        self._anonymous = anonymous

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                scope.setdefault("state", {})["caller"] = self._caller(scope)
            except ProblemError as error:
                await self._problem_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller:
        caller: Caller | None = None
        credentials = header(scope, b"authorization")
        scheme, _, token = credentials.partition(b" ")
        if scheme.lower() == b"bearer":
            caller = self._tokens.caller(token.strip())
        elif not credentials and self._anonymous is not None:
            caller = self._anonymous(scope)
        if caller is None:
            raise ProblemError(
                ProblemCode.UNAUTHORIZED, "send `Authorization: Bearer <a token of the server's token file>`"
            )
        return caller


class RequestBody:
    """Reads a body of at most `limit` bytes within `timeout_s` seconds and turns MessagePack into JSON, which is all
    that the routes know.
    """

    def __init__(
        self, app: ASGIApp, limit: int, timeout_s: float, problem_response: ProblemResponses
    ) -> None:
        self._app = app
        self._limit = limit
        self._timeout_s = timeout_s
        self._problem_response = problem_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(receive)
            if body is None:
                return
            if body and media_type(header(scope, b"content-type").decode("latin-1")) == MSGPACK:
                body = msgpack_to_json(body)
                scope["headers"] = [
                    (name, value)
                    for name, value in scope["headers"]
                    if name not in (b"content-type", b"content-length")
                ] + [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode())]
        except CodecError as error:
            problem = ProblemError(ProblemCode.INVALID_REQUEST, f"body: {error}")
            await self._problem_response(problem)(scope, receive, send)
            return
        except TimeoutError:
            problem = ProblemError(
                ProblemCode.REQUEST_TIMEOUT, f"the body was not there after {self._timeout_s:g} s"
            )
            await self._refuse_rest(problem, scope, receive, send)
            return
        except ProblemError as error:
            await self._refuse_rest(error, scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _refuse_rest(self, error: ProblemError, scope: Scope, receive: Receive, send: Send) -> None:
        # What is left of the body would be taken for the next request.
        await self._problem_response(error, headers={"Connection": "close"})(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None when the client hung up. Raises ProblemError payload_too_large."""
        body = bytearray()
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            more = message.get("more_body", False)
            if size <= self._limit:
                body += chunk
            elif size > self._limit + DROPPED_BYTES:
                break
        if size > self._limit:
            raise ProblemError(
                ProblemCode.PAYLOAD_TOO_LARGE,
                f"the body is larger than {self._limit} bytes, the most that is taken",
            )
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of a (lower-case) name; empty when there is none."""
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")
