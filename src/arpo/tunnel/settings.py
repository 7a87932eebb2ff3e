"""What a tunnel needs to know, checked; and the ssh command that it makes."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arpo.protocol.problems import ConfigError
from arpo.tunnel.address import Destination, Endpoint, Forward

ALIVE_S, ALIVE_COUNT = 10, 3
"""A connection on which nothing came for this many seconds times this many is given up."""
CONNECT_S = 15
_OPTION = re.compile(r"[A-Za-z]+=.+")
_PUBLIC_KEY = re.compile(r"(?:ssh|ecdsa|sk)-\S+ [A-Za-z0-9+/=]+")


@dataclass(frozen=True)
class TunnelSettings:
    """One tunnel.

    key: file of the private key, by path only. env: the env-server here. remote: where it is to be found there.
    host_key: the only host key that is accepted, e.g. `ssh-ed25519 AAAA…`; None: the one of the first connection, kept in
    `known_hosts`. ssh_options: more `-o` options of ssh.
    """

    to: Destination
    key: Path
    env: Endpoint
    remote: Endpoint
    otlp: Forward | None
    host_key: str | None
    known_hosts: Path
    ssh_options: tuple[str, ...] = ()

    @property
    def env_url(self) -> str:
        """Where the env-server is on this machine."""
        return f"http://{self.env}"


def ssh_program() -> str:
    """Path of the ssh client. Raises ConfigError."""
    found = shutil.which("ssh")
    if found is None:
        raise ConfigError(
            "there is no `ssh` on the PATH; fix: install the OpenSSH client (apt-get install openssh-client)"
        )
    return found


def check_key(key: Path) -> None:
    """Raises ConfigError for a key file that ssh would not use."""
    make = f"make one with ssh-keygen -t ed25519 -N '' -f {key}"
    try:
        mode = key.stat().st_mode
        text = key.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"--key {key} cannot be read: {error.strerror}; fix: {make}") from error
    if _PUBLIC_KEY.match(text):
        raise ConfigError(f"--key {key} is the public key; fix: --key {key.with_suffix('')}")
    if "PRIVATE KEY-----" not in text:
        raise ConfigError(f"--key {key} is no private key; fix: {make}")
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"--key {key} can be read by others, so ssh will not use it; fix: chmod 600 {key}")


def read_host_key(given: str) -> str:
    """The key in `--host-key`: itself, or in a file of that name. Raises ConfigError."""
    text = given.strip()
    if not _PUBLIC_KEY.match(text):
        try:
            text = Path(given).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--host-key {given!r} is no key and no file with one; fix: the line of the cluster's "
                "ssh_host_ed25519_key.pub, e.g. 'ssh-ed25519 AAAA…'"
            ) from error
    found = _PUBLIC_KEY.match(text)
    if found is None:
        raise ConfigError(
            f"--host-key {given}: no public key in it; fix: the cluster's ssh_host_ed25519_key.pub"
        )
    return found[0]


def check_ssh_options(options: Sequence[str]) -> tuple[str, ...]:
    """Raises ConfigError for what is not `Keyword=value`."""
    for option in options:
        if not _OPTION.fullmatch(option):
            raise ConfigError(
                f"--ssh-option {option!r} is not Keyword=value; fix: e.g. --ssh-option ProxyJump=bastion"
            )
    return tuple(options)


def ssh_command(ssh: str, settings: TunnelSettings, known_hosts: Path, check: Path) -> list[str]:
    """The arguments of ssh; no shell is involved, and the key is named, not given.

    known_hosts: with the pinned key, or that of the first connection. check: a socket here that leads through the tunnel
    and back to the env-server.
    """
    to = settings.to
    loop = Endpoint("127.0.0.1" if settings.remote.host in ("*", "0.0.0.0", "localhost") else settings.remote.host,  # noqa: S104
                    settings.remote.port)  # fmt: skip
    options = [
        # What a person has in ~/.ssh/config could add forwards or share a connection; theirs go by --ssh-option.
        *settings.ssh_options,
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "PreferredAuthentications=publickey",
        f"StrictHostKeyChecking={'yes' if settings.host_key else 'accept-new'}",
        f"UserKnownHostsFile={_quoted(known_hosts)}",
        "GlobalKnownHostsFile=none",
        "UpdateHostKeys=no",
        "ExitOnForwardFailure=yes",
        f"ConnectTimeout={CONNECT_S}",
        f"ServerAliveInterval={ALIVE_S}",
        f"ServerAliveCountMax={ALIVE_COUNT}",
        "StreamLocalBindUnlink=yes",
    ]
    forwards = ["-R", f"{settings.remote}:{settings.env}", "-L", f"{check}:{loop}"]
    if settings.otlp is not None:
        forwards += ["-L", str(settings.otlp)]
    return [
        ssh, "-N", "-T", "-v", "-F", "none", "-i", str(settings.key), "-p", str(to.port), "-l", to.user,
        *(word for option in options for word in ("-o", option)),
        *forwards, "--", to.host,
    ]  # fmt: skip


def _quoted(path: Path) -> str:
    """As one word of ssh's configuration, `%` being its own escape."""
    text = str(path).replace("%", "%%")
    return f'"{text}"'
