"""`arpo env`: what a person asks a running env-server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from arpo.client import EnvClient
from arpo.client.operator import Operator
from arpo.client.token_file import read_token
from arpo.console import Failed, until_signal
from arpo.protocol.actions import Click, Fail
from arpo.protocol.messages import Capacity, PoolStatus, SessionList
from arpo.protocol.problems import ProblemError
from arpo.protocol.tokens import Scope, default_token_file

env_app = typer.Typer(help="Look after a running env-server.", no_args_is_help=True)
# no markup: reasons and names may hold brackets
out = Console(highlight=False, markup=False)

T = TypeVar("T")

# Scored 1 for saying that it cannot be done, on any provider.
_TRIAL = {"id": "arpo-env-try", "instruction": "Open the moon.", "evaluator": {"func": "infeasible"}}

UrlOption = Annotated[
    str, typer.Option(envvar="ARPO_ENV_URL", help="The env-server, e.g. http://127.0.0.1:18082.")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        envvar="ARPO_ENV_TOKEN_FILE",
        help="File with a token whose scopes include admin. Default: the env-server's own, "
        "~/.config/arpo/env-server.token",
    ),
]
DEFAULT_URL = "http://127.0.0.1:18082"


@env_app.command()
def status(
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document on stdout.")] = False,
) -> None:
    """Show the desktops and the sessions. Exit code 1 when no desktop works or the server does not answer."""

    async def ask(server: Operator) -> tuple[Capacity, PoolStatus, SessionList]:
        return await server.capacity(), await server.pool(), await server.sessions()

    capacity, pool, sessions = _asked(url, token_file, ask)
    if as_json:
        document = {
            "capacity": capacity.model_dump(mode="json"),
            **pool.model_dump(mode="json"),
            **sessions.model_dump(mode="json"),
        }
        typer.echo(json.dumps(document, indent=2))
    else:
        out.print(
            f"{url}: {capacity.capacity} × {capacity.provider}, {capacity.free} free, {capacity.busy} leased, "
            f"{capacity.quarantined} quarantined (version {capacity.version})"
        )
        _print_pool(pool)
        _print_sessions(sessions)
    if capacity.quarantined == len(pool.desktops):
        raise Failed("no desktop works; the reasons are above. When they are gone: arpo env reset-pool")


@env_app.command("reset-pool")
def reset_pool(
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    sessions: Annotated[
        bool,
        typer.Option(
            "--sessions",
            help="End the sessions, too; their clients see desktop_lost. Without, a leased desktop is replaced when "
            "its session ends.",
        ),
    ] = False,
) -> None:
    """Put a fresh desktop in every place, quarantined ones included."""
    _print_pool(_asked(url, token_file, lambda server: server.reset_pool(sessions=sessions)))


@env_app.command("try")
def try_desktop(
    url: UrlOption = DEFAULT_URL,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="ARPO_ENV_TOKEN_FILE",
            help="File with a token whose scopes include trainer. Default: the env-server's own, "
            "~/.config/arpo/env-server.token",
        ),
    ] = None,
    wait_s: Annotated[float, typer.Option(min=0, help="Seconds to wait for a desktop.")] = 120.0,
) -> None:
    """Lease a desktop, click into its middle, have it scored, give it back. Exit code 1 when that does not work."""
    token = read_token(token_file or default_token_file(), Scope.TRAINER, "--token-file")

    async def attempt() -> None:
        async with EnvClient(url, token) as server:
            capacity = await server.wait_ready(wait_s, lambda why: out.print(f"waiting: {why}"))
            width, height = capacity.screen
            async with await server.open_session(_TRIAL) as session:
                out.print(f"leased a {capacity.provider} desktop, {width}×{height}")
                await session.step([Click(x=width // 2, y=height // 2)])
                out.print(f"clicked at {width // 2}, {height // 2}")
                await session.step([Fail()])
                score = await session.evaluate()
        if score != 1.0:
            raise Failed(f"the trial scored {score:g}, not 1: its evaluator does not work")
        out.print("scored 1: desktop, actions and evaluator work")

    try:
        asyncio.run(until_signal(attempt()))
    except ProblemError as error:
        raise Failed(str(error)) from error


def _asked(url: str, token_file: Path | None, question: Callable[[Operator], Awaitable[T]]) -> T:
    token = read_token(token_file or default_token_file(), Scope.ADMIN, "--token-file")

    async def ask() -> T:
        async with Operator(url, token) as server:
            return await question(server)

    try:
        return asyncio.run(until_signal(ask()))
    except ProblemError as error:
        raise Failed(str(error)) from error


def _print_pool(pool: PoolStatus) -> None:
    table = _table("desktop", "state", "failures", "session", "last failure")
    for desktop in pool.desktops:
        table.add_row(
            str(desktop.index), desktop.state, str(desktop.strikes), desktop.session_id or "", desktop.reason
        )
    out.print(table)


def _print_sessions(sessions: SessionList) -> None:
    table = _table("session", "of", "task", "state", "steps", "silent")
    for session in sessions.sessions:
        problem = f": {session.problem.code.value}" if session.problem else ""
        table.add_row(
            session.session_id,
            f"{session.caller} {session.client_id}".rstrip(),
            session.task_id,
            f"{session.state.value}{problem}",
            str(session.seq),
            f"{session.idle_s:.0f} of {session.idle_timeout_s:.0f} s",
        )
    out.print(table)


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
