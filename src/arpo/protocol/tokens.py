"""The format of a token file, which the env-server and its clients read alike.

    # <token> [scopes] [name]
    k3uY0...          trainer          alice
    Zp81f...          trainer,admin    ops

Without scopes a token is a `trainer`. Tokens of one name belong to one caller, so a token can be replaced by a
new one while sessions go on. Without a name every token is a caller of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Scope(StrEnum):
    """What a token is good for."""

    TRAINER = "trainer"
    """Sessions of its own, and the server's numbers."""
    BACKEND = "backend"
    """To register an env-server with a gateway."""
    ADMIN = "admin"
    """Everybody's sessions, the pool, the metrics."""


@dataclass(frozen=True)
class Token:
    """One line of a token file. `secret` is not shown in a repr."""

    secret: str = field(repr=False)
    scopes: frozenset[Scope] = frozenset({Scope.TRAINER})
    name: str = ""


def parse_tokens(text: str) -> list[Token]:
    """The tokens in a token file: one a line; empty lines and lines that start with `#` say nothing.

    An env-server accepts every one of them, a client sends the first that has the scope it needs.
    Raises ValueError when a line is not a token, or two lines hold the same one; it never repeats a token.
    """
    tokens: list[Token] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            token = _token(words)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if any(token.secret == known.secret for known in tokens):
            raise ValueError(f"line {number}: the token of an earlier line")
        tokens.append(token)
    return tokens


def token_for(tokens: Sequence[Token], scope: Scope) -> Token | None:
    """The first token with a scope."""
    return next((token for token in tokens if scope in token.scopes), None)


def default_token_file() -> Path:
    """`$XDG_CONFIG_HOME/arpo/env-server.token`, usually `~/.config/arpo/env-server.token`."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "arpo" / "env-server.token"


def _token(words: Sequence[str]) -> Token:
    secret, scopes, name, *more = (*words, *("", Scope.TRAINER.value, "")[len(words) :])
    if more:
        raise ValueError("more than a token, its scopes and its name")
    if not secret.isascii() or not secret.isprintable():
        # No `Authorization` header could carry it.
        raise ValueError("the token is not printable ASCII")
    known = {scope.value for scope in Scope}
    unknown = sorted(set(scopes.split(",")) - known)
    if unknown:
        raise ValueError(f"{unknown[0]!r:.40} is no scope; known: {', '.join(sorted(known))}")
    if name and not _NAME.fullmatch(name):
        raise ValueError("the name is not made of up to 64 letters, digits and ._@-")
    return Token(secret, frozenset(Scope(scope) for scope in scopes.split(",")), name)
