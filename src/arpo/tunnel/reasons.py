"""Why a connection did not come to be, or ended, read from what ssh says. Pure.

Invariant: every end has one reason in one line, with what mends it; `lasting` ones do not mend themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arpo.tunnel.settings import TunnelSettings

_NOISE = re.compile(
    r"debug\d: |OpenSSH_|Authenticated to |Transferred: |Bytes per second|Warning: Permanently added|@+$"
)


@dataclass(frozen=True)
class Reason:
    """Why. lasting: it stays so until a person acts, and trying again is of no use."""

    text: str
    lasting: bool = False


_Make = Callable[[TunnelSettings, re.Match[str]], Reason]


def _host_key(settings: TunnelSettings, _: re.Match[str]) -> Reason:
    if settings.host_key is not None:
        fix = "--host-key with the key that the cluster has now"
    else:
        fix = (
            f"if it was replaced on purpose: ssh-keygen -R '{settings.to.known_as}' -f {settings.known_hosts}"
        )
    return Reason(
        f"the host key of {settings.to.known_as} is not the one that is known; someone may be in between; fix: {fix}",
        lasting=True,
    )


def _denied(settings: TunnelSettings, _: re.Match[str]) -> Reason:
    return Reason(
        f"{settings.to} does not let {settings.to.user} in with the key {settings.key}; fix: add the line of "
        f"{settings.key}.pub to the cluster's authorized_keys (a key with a passphrase must be in the ssh agent)"
    )


def _port_taken(settings: TunnelSettings, _: re.Match[str]) -> Reason:
    return Reason(
        f"the cluster does not give port {settings.remote.port}: another connection has it, or it may not be asked for; "
        "fix: end the other tunnel (a dead one is let go within 40 s), or --remote with a port that its sshd permits"
    )


def _local_port(settings: TunnelSettings, found: re.Match[str]) -> Reason:
    return Reason(f"{found[1]}:{found[2]} is taken on this machine; fix: --otlp with another local port")


def _unknown_name(settings: TunnelSettings, _: re.Match[str]) -> Reason:
    return Reason(
        f"the name {settings.to.host} is not known here: is this machine online? fix: check the host in --to"
    )


def _refused(settings: TunnelSettings, _: re.Match[str]) -> Reason:
    return Reason(
        f"nothing listens at {settings.to.host} port {settings.to.port} (connection refused); fix: is the tunnel pod up, "
        "and --to its Service's host and port?"
    )


def _unreachable(settings: TunnelSettings, found: re.Match[str]) -> Reason:
    return Reason(
        f"{settings.to.host} port {settings.to.port} does not answer ({found[0].lower()}); fix: network, firewall, and "
        "the host in --to"
    )


def _silent(settings: TunnelSettings, _: re.Match[str]) -> Reason:
    return Reason(f"{settings.to.host} fell silent")


def _dropped(settings: TunnelSettings, found: re.Match[str]) -> Reason:
    return Reason(f"{settings.to.host} closed the connection ({found[0].lower()})")


def _bad_key(settings: TunnelSettings, _: re.Match[str]) -> Reason:
    return Reason(
        f"{settings.key} is no private key that ssh can read; fix: ssh-keygen -t ed25519 -N '' -f {settings.key}",
        lasting=True,
    )


def _loose_key(settings: TunnelSettings, _: re.Match[str]) -> Reason:
    return Reason(
        f"{settings.key} can be read by others, so ssh will not use it; fix: chmod 600 {settings.key}",
        lasting=True,
    )


def _bad_option(settings: TunnelSettings, found: re.Match[str]) -> Reason:
    return Reason(f"ssh does not take an option: {found[0]}; fix: --ssh-option", lasting=True)


# The first that is found anywhere in the output counts, so what explains the others comes first.
_KNOWN: Sequence[tuple[re.Pattern[str], _Make]] = [
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), make)
    for pattern, make in (
        (
            r"bad configuration option.*|unsupported option.*|keyword .* extra arguments.*|missing argument.*",
            _bad_option,
        ),
        (
            r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key verification failed|no \S+ host key is known",
            _host_key,
        ),
        (r"UNPROTECTED PRIVATE KEY FILE|bad permissions", _loose_key),
        (r'^Load key ".*": (invalid format|error in libcrypto|unknown or unsupported)', _bad_key),
        (r"^\S+: Permission denied|Too many authentication failures", _denied),
        (r"remote port forwarding failed", _port_taken),
        (r"bind \[(.*)\]:(\d+): address already in use", _local_port),
        (r"could not resolve hostname", _unknown_name),
        (r"connect to (?:host|address) .* refused", _refused),
        (
            r"(?:connection|operation) timed out|no route to host|network is (?:unreachable|down)|host is down",
            _unreachable,
        ),
        (r"timeout, server .* not responding", _silent),
        (
            r"connection (?:reset|closed) by (?:remote host|\S+)|broken pipe|"
            r"kex_exchange_identification: .*|software caused connection abort",
            _dropped,
        ),
    )
]


def why_it_ended(settings: TunnelSettings, lines: Sequence[str], status: int) -> Reason:
    """Why ssh ended, from what it wrote and its exit status."""
    said = [line for line in lines if line.strip() and not _NOISE.match(line)]
    text = "\n".join(said)
    for pattern, make in _KNOWN:
        if found := pattern.search(text):
            return make(settings, found)
    return Reason(said[-1].strip() if said else f"ssh ended with status {status} and said nothing")


def refused_channel(line: str) -> bool:
    """Whether the line says that the cluster does not open what `-L` asks for."""
    return "open failed: administratively prohibited" in line
