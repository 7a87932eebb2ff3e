"""Who asks: the name and the scopes behind a bearer token.

Invariant: a caller's name is no secret; it may be logged and shown to operators.
"""

from __future__ import annotations

from dataclasses import dataclass

from arpo.protocol.problems import ProblemCode, ProblemError
from arpo.protocol.tokens import Scope


@dataclass(frozen=True)
class Caller:
    """name: what the token file calls the token, else a fingerprint of it. Callers of one name share sessions."""

    name: str
    scopes: frozenset[Scope] = frozenset({Scope.TRAINER})

    @property
    def is_admin(self) -> bool:
        """Whether it may see and end everybody's sessions."""
        return Scope.ADMIN in self.scopes

    def check(self, *allowed: Scope) -> None:
        """Raises ProblemError forbidden unless the caller has one of the scopes."""
        if self.scopes.isdisjoint(allowed):
            needed = " or ".join(scope.value for scope in allowed)
            raise ProblemError(
                ProblemCode.FORBIDDEN,
                f"the token of {self.name} has no scope {needed}; fix: write it behind the token in the server's "
                "token file",
            )
