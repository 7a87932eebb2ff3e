"""The env-server as one thing: a socket, a pool of desktops, sessions, HTTP.

Invariant: leaving `running_server` drains the sessions, stops HTTP and closes every desktop, in this order,
whatever the reason for leaving was.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn

from arpo.config.sections import Timeouts
from arpo.protocol.problems import ConfigError
from arpo.server.app import HttpLimits, create_app
from arpo.server.http import MAX_HEADER_BYTES, Server, connection
from arpo.server.legacy_access import LegacyAccess
from arpo.server.legacy_sessions import LegacySettings
from arpo.server.manager import SessionManager, running_manager
from arpo.server.metrics import ServerMetrics
from arpo.server.pool import DesktopFactory, PoolLimits, running_pool
from arpo.server.tokens import TokenFile


@dataclass(frozen=True)
class ServerSettings:
    """What an env-server serves, and its limits.

    provider: its name, for `/v1/capacity`. screen: pixels. capacity: how many desktops can be leased at once.
    spares: desktops kept besides, so that a lease need not wait for a cleaning. timeouts: the desktops' own.
    sessions_per_caller: at once; None: no limit but the capacity. drain_grace_s: how long running steps and
    evaluations may go on once the server is to stop. stop_s: how long closing one desktop may take. margin_s: by how
    much the sessions' time-outs are wider than the desktops' own, which know better what was late.
    """

    provider: str
    screen: tuple[int, int]
    capacity: int
    spares: int = 0
    timeouts: Timeouts = field(default_factory=Timeouts)
    sessions_per_caller: int | None = None
    limits: HttpLimits = field(default_factory=HttpLimits)
    legacy: LegacySettings = field(default_factory=LegacySettings)
    drain_grace_s: float = 20.0
    stop_s: float = 20.0
    margin_s: float = 10.0
    access_log: bool = False


@dataclass(frozen=True)
class RunningServer:
    """An env-server that accepts connections. stopped: ends when HTTP ends by itself, which is an error."""

    url: str
    manager: SessionManager
    stopped: asyncio.Task[None]


BACKLOG = 2048

_BIND_FIXES = {
    errno.EADDRINUSE: "--port with a free one, or 0 for any",
    errno.EACCES: "--port above 1023",
}


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 takes a free one. Raises ConfigError.

    It listens at once: until then another server could be bound to the same port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror}; fix: an address of this machine") from error
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        fix = _BIND_FIXES.get(error.errno or 0, "--host with an address of this machine")
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; fix: {fix}") from error
    return bound


@asynccontextmanager
async def running_server(
    factory: DesktopFactory,
    listener: socket.socket,
    tokens: TokenFile,
    settings: ServerSettings,
    without_token: LegacyAccess | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[RunningServer]:
    """Serve desktops on a bound socket. Inside, connections are accepted; the desktops start in the
    background. without_token: the door for legacy requests that carry none. clock: seconds, by which sessions are
    silent.
    """
    timeouts = _session_limits(settings)
    metrics = ServerMetrics()
    async with (
        running_pool(factory, settings.capacity, _pool_limits(settings), spares=settings.spares) as pool,
        running_manager(
            pool,
            timeouts,
            metrics=metrics,
            sessions_per_caller=settings.sessions_per_caller,
            clock=clock,
        ) as manager,
    ):
        app = create_app(
            manager,
            tokens,
            provider=settings.provider,
            screen=settings.screen,
            limits=settings.limits,
            legacy=settings.legacy,
            without_token=without_token,
        )
        http = Server(
            uvicorn.Config(
                app,
                http=connection(settings.limits.header_timeout_s),
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=settings.access_log,
                server_header=False,
                # Longer than a client keeps an idle connection: a request never meets a connection being
                # closed.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=5,
            )
        )
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        accepting = asyncio.create_task(http.accepting.wait())
        try:
            await asyncio.wait({serving, accepting}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            yield RunningServer(_url(listener), manager, serving)
        finally:
            accepting.cancel()
            await manager.drain(settings.drain_grace_s)
            http.should_exit = True
            await serving


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"  # where this machine reaches it
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _session_limits(settings: ServerSettings) -> Timeouts:
    """What the session manager allows. Its `reset_s` is for all of a reset: a lost guest is started again first."""
    limits, margin_s = settings.timeouts, settings.margin_s
    return Timeouts(
        start_s=limits.start_s + margin_s,
        reset_s=limits.start_s + limits.reset_s + limits.setup_s + margin_s,
        setup_s=limits.setup_s,
        step_s=limits.step_s + margin_s,
        evaluate_s=limits.evaluate_s + margin_s,
    )


def _pool_limits(settings: ServerSettings) -> PoolLimits:
    limits, margin_s = settings.timeouts, settings.margin_s
    return PoolLimits(
        start_s=limits.start_s + margin_s, clean_s=limits.reset_s + margin_s, stop_s=settings.stop_s
    )
