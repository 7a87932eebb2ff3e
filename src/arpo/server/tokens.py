"""The bearer tokens that the env-server accepts.

Invariant: a token is never logged, printed or returned; only where its file is.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

from arpo.protocol.problems import ConfigError
from arpo.protocol.tokens import Scope, Token, parse_tokens
from arpo.server.callers import Caller

log = logging.getLogger(__name__)

_Signature = tuple[int, int, int]


class TokenFile:
    """The tokens in a file, read again whenever it changes: every line is valid, so tokens can be rotated.

    A file that becomes unreadable (it is being replaced, say) leaves the tokens as they were; an empty one
    revokes all. Raises ConfigError when it cannot be read at first or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: _Signature | None = None
        self._callers: list[tuple[bytes, Caller]] = []
        self._stale = False
        try:
            self._reload()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"token file {path} cannot be used: {error}; fix: `<token> [scopes] [name]`, one a line"
            ) from error
        if not self._callers:
            raise ConfigError(
                f"token file {path} holds no token; fix: write one a line, or remove it and one is made"
            )
        mode = path.stat().st_mode
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("token file %s can be read by other users (mode %o)", path, stat.S_IMODE(mode))

    def caller(self, candidate: bytes) -> Caller | None:
        """Whose token this is, if it is valid; takes as long for a wrong one as for a right one."""
        try:
            self._reload()
        except (OSError, ValueError) as error:
            if not self._stale:
                log.warning("token file %s cannot be read, its tokens stay valid: %s", self.path, error)
            self._stale = True
        digest = _digest(candidate)
        found: Caller | None = None
        for known, caller in self._callers:
            if hmac.compare_digest(digest, known):
                found = caller
        return found

    def _reload(self) -> None:
        info = self.path.stat()
        signature = (info.st_mtime_ns, info.st_ino, info.st_size)
        if signature == self._seen:
            return
        self._callers = [_entry(token) for token in parse_tokens(self.path.read_text("ascii"))]
        self._seen = signature
        self._stale = False


def ensure_token_file(path: Path) -> bool:
    """Make a token file, mode 0600, unless there is a file already; returns whether it was made.

    It holds one token for trainers, the first, and one for operators. Two servers that start together end up with
    the same file. Raises ConfigError when it cannot be written.
    """
    if path.exists():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        fresh = Path(name)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.writelines(
                    f"{secrets.token_urlsafe(32)} {scope} {scope}\n" for scope in (Scope.TRAINER, Scope.ADMIN)
                )
                file.write("# <token> [scopes] [name]; scopes: trainer, backend, admin\n")
            # A link is made whole or not at all, and not over a file that another server has just made.
            os.link(fresh, path)
        except FileExistsError:
            return False
        finally:
            fresh.unlink()
    except OSError as error:
        raise ConfigError(
            f"token file {path} cannot be made: {error.strerror}; fix: --token-file in a writable folder"
        ) from error
    return True


def _entry(token: Token) -> tuple[bytes, Caller]:
    digest = _digest(token.secret.encode())
    return digest, Caller(token.name or f"token-{digest.hex()[:8]}", token.scopes)


def _digest(token: bytes) -> bytes:
    # Equal lengths for the comparison, and no token kept in memory.
    return hashlib.sha256(token).digest()
