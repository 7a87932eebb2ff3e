"""The command-line options of a tunnel, said once for every command that takes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from arpo.protocol.tokens import default_token_file
from arpo.tunnel.address import parse_destination, parse_endpoint, parse_forward
from arpo.tunnel.settings import TunnelSettings, check_key, check_ssh_options, read_host_key

T = TypeVar("T")


def takes_tunnel_options(command: Callable[..., T]) -> Callable[..., T]:
    """For a typer command: its first parameter, `settings`, is made of the options below, which take its place."""
    shared = inspect.signature(_settings, eval_str=True).parameters
    _, *own = inspect.signature(command, eval_str=True).parameters.values()

    @functools.wraps(command)
    def with_options(**given: Any) -> T:
        settings = _settings(**{name: given.pop(name) for name in shared})
        return command(settings, **given)

    parameters = [*shared.values(), *own]
    # where typer looks
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options


def _settings(
    to: Annotated[
        str,
        typer.Option(
            metavar="ssh://USER@HOST:PORT", help="The cluster's tunnel sshd; the chart's user is `arpo`."
        ),
    ],
    key: Annotated[
        Path, typer.Option(help="File of the private key whose public part the cluster has. Mode 0600.")
    ],
    env: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The env-server on this machine.")
    ] = "127.0.0.1:18082",
    remote: Annotated[
        str,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Where the cluster finds it, at the sshd. `*`: at all addresses of that.",
        ),
    ] = "*:15001",
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="[[HOST:]PORT:]HOST:PORT",
            help="Lead a port of this machine to the cluster's OTLP receiver, e.g. 127.0.0.1:4318:jaeger:4318, so that "
            "the env-server's spans arrive there. Default: none.",
        ),
    ] = None,
    host_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY|FILE",
            help="The cluster's public host key (`ssh-ed25519 AAAA…`, or a file with it): nothing else is accepted. "
            "Default: what the first connection shows is kept in --known-hosts, and another one is refused from then on.",
        ),
    ] = None,
    known_hosts: Annotated[
        Path | None,
        typer.Option(help="Where that is kept. Default: ~/.config/arpo/tunnel_known_hosts"),
    ] = None,
    ssh_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEYWORD=VALUE",
            help="An option of ssh's own, e.g. ProxyJump=bastion; repeatable. ~/.ssh/config is not read.",
        ),
    ] = None,
) -> TunnelSettings:
    """What the options say, checked. Raises ConfigError."""
    destination = parse_destination(to)
    key = key.expanduser().absolute()
    check_key(key)
    remote = remote if ":" in remote else f"*:{remote}"
    known_hosts = known_hosts or default_token_file().parent / "tunnel_known_hosts"
    return TunnelSettings(
        to=destination,
        key=key,
        env=parse_endpoint(env, "--env"),
        remote=parse_endpoint(remote, "--remote"),
        otlp=parse_forward(otlp, "--otlp") if otlp else None,
        host_key=read_host_key(host_key) if host_key else None,
        known_hosts=known_hosts.expanduser().absolute(),
        ssh_options=check_ssh_options(ssh_option or ()),
    )
