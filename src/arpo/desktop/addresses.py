"""Which network addresses a task may make this host reach: public ones, and those that the operator allows.

Invariant: what is judged is the address that is connected to, never only the name that led to it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from arpo.protocol.problems import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ALLOW_OPTION = "--allow-address"
"""The option of the env-server that opens an address."""

_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_OLD_IPV4 = re.compile(
    r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+)){0,3}", re.IGNORECASE
)  # 127.1, 0x7f000001, 2130706433
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_INTERNAL_SUFFIXES = (".localhost", ".local", ".internal", ".intranet", ".lan", ".home.arpa", ".localdomain")


class AddressRefused(Exception):  # noqa: N818 - a decision, not a malfunction
    """An address that tasks may not reach; the message names the option that opens it."""


@dataclass(frozen=True)
class AddressPolicy:
    """What tasks may reach besides public addresses: nothing, unless it is listed.

    names: host names, lower case; whatever they resolve to is allowed.
    networks: addresses that are allowed under any name.
    """

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> AddressPolicy:
        """A policy of host names, addresses and CIDR networks: `files.lab.internal`, `10.1.2.3`, `10.0.0.0/8`.

        Raises ConfigError that names the entry which is none of these.
        """
        names: set[str] = set()
        networks: list[Network] = []
        for entry in entries:
            text = entry.strip().lower().rstrip(".")
            try:
                networks.append(ipaddress.ip_network(text.strip("[]"), strict=False))
                continue
            except ValueError:
                pass
            if not _NAME.fullmatch(text) or _OLD_IPV4.fullmatch(text):
                raise ConfigError(
                    f"{ALLOW_OPTION} {entry[:100]!r}: give a host name, an address or a network such as 10.0.0.0/8, "
                    "without scheme and port"
                )
            names.add(text)
        return cls(frozenset(names), tuple(networks))

    def check(self, host: str, address: str) -> None:
        """Refuse `address`, which `host` resolved to, unless it is public or allowed. Raises AddressRefused."""
        name = _plain(host)
        if name in self.names:
            return
        found = _parsed(address)
        if found is None:
            raise AddressRefused(f"{address[:100]!r} is not an address")
        if any(found in network for network in self.networks):
            return
        inner = _carried(found)
        if inner is not None:
            if any(inner in network for network in self.networks):
                return
            reason = _why_not_public(inner)
        else:
            reason = _why_not_public(found)
        if reason is not None:
            what = str(found) if _parsed(name) is not None else f"{name[:253]} is {found}, which"
            raise AddressRefused(
                f"{what} is {reason}: tasks reach public addresses only "
                f"(the env-server's operator can open it with {ALLOW_OPTION} {found})"
            )

    def check_name(self, host: str) -> None:
        """Refuse what can be told from the name alone, for where a proxy resolves it. Raises AddressRefused."""
        name = _plain(host)
        if name in self.names:
            return
        if _parsed(name) is not None:
            self.check(name, name)
        elif "." not in name or name.endswith(_INTERNAL_SUFFIXES):
            raise AddressRefused(
                f"{name[:253]!r} names a host of the internal network: tasks reach public addresses only "
                f"(the env-server's operator can open it with {ALLOW_OPTION} {name[:253]})"
            )


def _plain(host: str) -> str:
    return host.strip("[]").lower().rstrip(".")


def _parsed(text: str) -> Address | None:
    """The address that `text` is, in today's notation or in one that the C library still understands."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    if not _OLD_IPV4.fullmatch(text):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text))
    except OSError:
        return None


def _carried(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to this IPv6 address end up at."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def _why_not_public(address: Address) -> str | None:
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_unspecified:
        return "the unspecified address"
    if not address.is_global or address.is_reserved:
        return "a private or reserved address"
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return "a private or reserved address"
    return None
