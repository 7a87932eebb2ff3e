"""`arpo tunnel`: the way from this machine into the cluster."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from arpo.console import EXIT_INTERRUPTED, Failed
from arpo.files import write_atomic
from arpo.protocol.problems import ConfigError
from arpo.signals import stop_request
from arpo.tunnel.agents import Agent, AgentFile, agent_file
from arpo.tunnel.keeper import Keeper
from arpo.tunnel.options import takes_tunnel_options
from arpo.tunnel.settings import TunnelSettings, ssh_program

tunnel_app = typer.Typer(
    help="Reach this machine's env-server from a cluster, over one ssh connection that this machine makes.",
    no_args_is_help=True,
)
# no markup: reasons and names may hold brackets
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)


@tunnel_app.command()
@takes_tunnel_options
def up(settings: TunnelSettings) -> int:
    """Keep the tunnel up until SIGTERM or Ctrl-C.

        arpo tunnel up --to ssh://arpo@HOST:2222 --key ~/.ssh/arpo_tunnel

    The cluster then reaches this machine's env-server at the sshd's port 15001. A lost connection is made again, after
    pauses of 1 to 30 s; each change is one line on stderr, `ready` once the env-server has answered.

    Exit codes: 0 after SIGTERM, 130 after Ctrl-C, 2 for wrong input, 1 for what no further try can mend: another host key,
    a private key that ssh does not take.
    """
    return asyncio.run(_until_stopped(Keeper(settings, ssh_program(), _say)))


@tunnel_app.command()
@takes_tunnel_options
def install(
    settings: TunnelSettings,
    with_env_server: Annotated[
        str | None,
        typer.Option(
            metavar="ARGUMENTS",
            help="An agent for arpo-env-server too, with these arguments: '--provider vmware --capacity 1'.",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Show the files; write nothing.")] = False,
) -> None:
    """Have this machine keep the tunnel up by itself, after every login: a launchd agent (macOS) or a systemd user unit
    (Linux).

    Takes the options of `arpo tunnel up`. The file holds paths, never a key or a token. Prints the commands that start and
    stop it.
    """
    agents = [_tunnel_agent(settings)]
    if with_env_server is not None:
        agents.append(_env_server_agent(with_env_server, settings))
    files = [agent_file(agent, sys.platform, Path.home(), os.getuid()) for agent in agents]
    for agent, file in zip(agents, files, strict=True):
        if show:
            out.print(f"# {file.path}", soft_wrap=True)
            out.print(file.text, soft_wrap=True)
        else:
            agent.log.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file.path, file.text.encode())
            out.print(f"written: {file.path}", soft_wrap=True)
        out.print(f"start:   {file.load}\nwatch:   {file.status}\nstop:    {file.unload}", soft_wrap=True)


@tunnel_app.command()
def uninstall() -> None:
    """Remove what `arpo tunnel install` wrote. Prints the command that stops what still runs."""
    found = [file for name in ("tunnel", "env-server") if (file := _installed(name)).path.exists()]
    if not found:
        raise Failed("nothing is installed")
    for file in found:
        file.path.unlink()
        out.print(f"removed: {file.path}\nstop:    {file.unload}", soft_wrap=True)


def _say(line: str) -> None:
    err.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True)


async def _until_stopped(keeper: Keeper) -> int:
    with stop_request() as stop:
        keeping = asyncio.create_task(keeper.run())
        asked = asyncio.create_task(stop.wait())
        await asyncio.wait({keeping, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            await keeping
            raise RuntimeError("the tunnel's keeper ended by itself")
        keeping.cancel()
        await asyncio.wait({keeping})
    if stop.signal is signal.SIGINT:
        return EXIT_INTERRUPTED  # `run_app` says so
    _say("stopped")
    return 0


def _tunnel_agent(settings: TunnelSettings) -> Agent:
    command = [
        _program("arpo"), "tunnel", "up", "--to", str(settings.to), "--key", str(settings.key),
        "--env", str(settings.env), "--remote", str(settings.remote), "--known-hosts", str(settings.known_hosts),
    ]  # fmt: skip
    if settings.otlp is not None:
        command += ["--otlp", str(settings.otlp)]
    if settings.host_key is not None:
        command += ["--host-key", settings.host_key]
    for option in settings.ssh_options:
        command += ["--ssh-option", option]
    return Agent("tunnel", f"ARPO: tunnel to {settings.to}", command, _log("tunnel"))


def _env_server_agent(arguments: str, settings: TunnelSettings) -> Agent:
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise ConfigError(
            f"--with-env-server {arguments!r}: {error}; fix: the arguments of arpo-env-server"
        ) from error
    listen = ["--host", settings.env.host, "--port", str(settings.env.port)]
    return Agent(
        "env-server", "ARPO: env-server", [_program("arpo-env-server"), *listen, *words], _log("env-server")
    )


def _installed(name: str) -> AgentFile:
    return agent_file(Agent(name, "", [], _log(name)), sys.platform, Path.home(), os.getuid())


def _program(name: str) -> str:
    """The whole path of one of our commands: beside this Python, or on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(f"there is no {name} here; fix: pip install arpo in the environment that runs this")
    return found


def _log(name: str) -> Path:
    base = Path.home() / ("Library/Logs/arpo" if sys.platform == "darwin" else ".local/state/arpo")
    return base / f"{name}.log"
