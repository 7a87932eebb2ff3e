"""Who may use the legacy API without a token: programs of the same machine, if its owner said so.

Invariant: a request without a token is let through only on a server that nothing but this machine can reach, and only
when no web page can have sent it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, MutableMapping
from typing import Any

from arpo.protocol.codec import JSON, media_type
from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError
from arpo.server.callers import Caller

NO_TOKEN = "ARPO_LEGACY_NO_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable; 1 lets requests without an Authorization header use the legacy API."""

ANONYMOUS = Caller("(no token)")
"""Whoever sends no token: all of them share one session. No line of a token file can have this name."""

_PREFIX = "/env/"


class LegacyAccess:
    """The door for requests without a token. address: the IP address that the server is bound to.

    Raises ConfigError unless that is a loopback address.
    """

    def __init__(self, address: str) -> None:
        if not _is_loopback(address):
            raise ConfigError(
                f"{NO_TOKEN}=1 lets everyone in who can reach {address}; fix: --host 127.0.0.1, or unset it and give "
                "the clients a token"
            )

    def caller(self, scope: MutableMapping[str, Any]) -> Caller | None:
        """Who sends an HTTP request (an ASGI scope) without a token; None when it needs one.

        Raises ProblemError forbidden for a request that a web page may have sent: pages reach the loopback, too, by
        forms and by names that resolve to it.
        """
        if not scope["path"].startswith(_PREFIX) or _values(scope, b"authorization"):
            return None
        if _values(scope, b"origin"):
            raise _forbidden("it has an Origin header, so a web page sends it")
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not _is_loopback(_without_port(hosts[0])):
            raise _forbidden(f"its Host header {', '.join(hosts)!r} is no name of this machine's loopback")
        types = _values(scope, b"content-type")
        if len(types) != 1 or media_type(types[0]) != JSON:
            raise _forbidden(f"its Content-Type is not {JSON}")
        return ANONYMOUS


def legacy_access(environment: Mapping[str, str], address: str) -> LegacyAccess | None:
    """The door that `ARPO_LEGACY_NO_TOKEN` opens on a server bound to an IP address; None when it stays shut.

    Raises ConfigError for another value than 0 or 1, and for a server that is not on the loopback.
    """
    value = environment.get(NO_TOKEN, "").strip()
    if value not in ("", "0", "1"):
        raise ConfigError(f"{NO_TOKEN}={value!r} is neither 0 nor 1; fix: unset it, or 1 for no token")
    return LegacyAccess(address) if value == "1" else None


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _values(scope: MutableMapping[str, Any], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]


def _forbidden(why: str) -> ProblemError:
    return ProblemError(
        ProblemCode.FORBIDDEN, f"a request without a token is refused here: {why}; fix: send a token"
    )
