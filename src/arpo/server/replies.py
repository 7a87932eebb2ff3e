"""What the routes share: who asks, and how a message is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from arpo.protocol.codec import MSGPACK, encode, negotiate
from arpo.protocol.tokens import Scope
from arpo.server.callers import Caller

BEARER = HTTPBearer(auto_error=False, description="A token of the server's token file.")
"""For the OpenAPI document only: `arpo.server.middleware.BearerAuth` checks the token."""

BOTH: dict[str, Any] = {"content": {MSGPACK: {}}}
"""OpenAPI: the reply comes in MessagePack, too."""


def _needs(*scopes: Scope) -> Callable[[Request], Awaitable[Caller]]:
    async def caller(request: Request) -> Caller:
        found: Caller = request.state.caller
        found.check(*scopes)
        return found

    return caller


Trainer = Annotated[Caller, Depends(_needs(Scope.TRAINER, Scope.ADMIN))]
Admin = Annotated[Caller, Depends(_needs(Scope.ADMIN))]
Anyone = Annotated[Caller, Depends(_needs(*Scope))]


def reply(
    request: Request, message: BaseModel, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A message in the encoding that the request asks for."""
    encoding = negotiate(request.headers.get("accept"))
    return Response(
        encode(message, encoding),
        status_code=status,
        media_type=encoding,
        headers={"Vary": "Accept", **(headers or {})},
    )
