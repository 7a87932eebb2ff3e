"""Where a tunnel leads, and what it forwards: what a person types, read and checked. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from arpo.protocol.problems import ConfigError

DEFAULT_USER = "arpo"
DEFAULT_PORT = 2222
_HOST = re.compile(r"[A-Za-z0-9._:-]+|\*")
_USER = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*")
_WORD = re.compile(r"(?:\[[^\[\]]*\]|[^:\[\]]+)")
_EXAMPLE = f"ssh://{DEFAULT_USER}@tunnel.example.com:{DEFAULT_PORT}"


@dataclass(frozen=True)
class Destination:
    """The sshd to connect to."""

    user: str
    host: str
    port: int

    @property
    def known_as(self) -> str:
        """How a known_hosts file names it."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user}@{host}:{self.port}"


@dataclass(frozen=True)
class Endpoint:
    """A host and a port. host `*`: all addresses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Forward:
    """What arrives at `listen` goes on to `connect`, at the other end of the tunnel."""

    listen: Endpoint
    connect: Endpoint

    def __str__(self) -> str:
        return f"{self.listen}:{self.connect}"


def parse_destination(text: str) -> Destination:
    """`ssh://[user@]host[:port]`. Raises ConfigError."""
    fix = f"fix: --to {_EXAMPLE}"
    try:
        parts = urlsplit(text)
        host, user, port = parts.hostname, parts.username, parts.port
    except ValueError as error:
        raise ConfigError(f"--to {text!r}: {error}; {fix}") from error
    if parts.password is not None:
        raise ConfigError(f"--to holds a password, and only keys are used here; {fix} --key FILE")
    if parts.scheme != "ssh" or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"--to {text!r} is no ssh URL; {fix}")
    user = DEFAULT_USER if user is None else user
    if not host or not _HOST.fullmatch(host) or host[0] in "-*" or not _USER.fullmatch(user) or port == 0:
        raise ConfigError(f"--to {text!r} does not name a user and a host; {fix}")
    return Destination(user, host, port or DEFAULT_PORT)


def parse_endpoint(text: str, option: str) -> Endpoint:
    """`host:port`. Raises ConfigError, which names the option."""
    words = _words(text)
    if len(words) != 2:
        raise ConfigError(f"{option} {text!r} is not host:port; fix: e.g. {option} 127.0.0.1:18082")
    return _endpoint(words[0], words[1], option, text)


def parse_forward(text: str, option: str) -> Forward:
    """`[local host:]local port:host:port`, or `host:port` for the same port here. Raises ConfigError."""
    words = _words(text)
    if len(words) == 2:
        words = ["127.0.0.1", words[1], *words]
    elif len(words) == 3:
        words = ["127.0.0.1", *words]
    if len(words) != 4:
        raise ConfigError(
            f"{option} {text!r} is not [[LOCAL HOST:]LOCAL PORT:]HOST:PORT; fix: e.g. {option} 127.0.0.1:4318:jaeger:4318"
        )
    host, port, far_host, far_port = words
    return Forward(_endpoint(host, port, option, text), _endpoint(far_host, far_port, option, text))


def _words(text: str) -> list[str]:
    """Split at the colons outside of brackets; nothing if that is impossible."""
    return _WORD.findall(text) if re.fullmatch(rf"{_WORD.pattern}(?::{_WORD.pattern})*", text) else []


def _endpoint(host: str, port: str, option: str, text: str) -> Endpoint:
    host = host.removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(host) or host.startswith("-"):
        raise ConfigError(f"{option} {text!r}: {host!r} is no host; fix: a name or an address")
    if not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise ConfigError(f"{option} {text!r}: {port!r} is no port; fix: 1 to 65535")
    return Endpoint(host, int(port))
