"""Who asks: the name and the scopes behind a bearer token.

Invariant: a caller's name is no secret; it may be logged and shown to operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a token is good for."""

    TRAINER = "trainer"
    """Sessions of its own, and the server's numbers."""
    BACKEND = "backend"
    """To register an env-server with a gateway."""
    ADMIN = "admin"
    """Everybody's sessions, the pool, the metrics."""


@dataclass(frozen=True)
class Caller:
    """name: what the token file calls the token, else a fingerprint of it. Callers of one name share sessions."""

    name: str
    scopes: frozenset[Scope]
