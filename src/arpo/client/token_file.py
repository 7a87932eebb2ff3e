"""The client's side of a token file: the token for what the client wants to do."""

from __future__ import annotations

from pathlib import Path

from arpo.protocol.problems import ConfigError
from arpo.protocol.tokens import Scope, parse_tokens, token_for


def read_token(path: Path, scope: Scope, setting: str) -> str:
    """The first token of a file that has a scope. setting: what named the file, e.g. `--token-file`.

    Raises ConfigError; no message shows a token.
    """
    try:
        tokens = parse_tokens(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{setting} {path} cannot be read: {reason}; fix: copy the env-server's") from error
    token = token_for(tokens, scope)
    if token is None:
        raise ConfigError(
            f"{setting} {path} holds no token with scope {scope.value}; fix: copy the line of the env-server's file"
        )
    return token.secret
