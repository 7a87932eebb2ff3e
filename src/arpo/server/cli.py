"""`arpo-env-server`: serve desktops of one provider over HTTP until told to stop.

Exit codes: 0 after SIGTERM or SIGHUP or when the parent is gone, 130 after SIGINT, 2 with one line on stderr for bad
input, anything else for a crash.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

import arpo
from arpo.agent.profiles import ProfileName
from arpo.config.sections import Timeouts
from arpo.console import EXIT_INTERRUPTED, run_app
from arpo.desktop.addresses import AddressPolicy
from arpo.desktop.base import Desktop
from arpo.desktop.evaluators import EvaluatorPool
from arpo.desktop.guest_desktop import DesktopTimeouts, GuestDesktop
from arpo.desktop.sources import Sources
from arpo.protocol.problems import ConfigError
from arpo.protocol.tokens import default_token_file
from arpo.providers.base import Provider
from arpo.providers.registry import (
    default_provider,
    default_screen,
    make_provider,
    parse_options,
    provider_names,
)
from arpo.server.legacy_access import NO_TOKEN, legacy_access
from arpo.server.legacy_sessions import LegacySettings
from arpo.server.logs import LogLevel, configure_logging
from arpo.server.parent import parent_gone
from arpo.server.pool import DesktopFactory
from arpo.server.service import ServerSettings, bind, running_server
from arpo.server.tokens import TokenFile, ensure_token_file
from arpo.server.url_file import published
from arpo.signals import StopRequest, stop_request
from arpo.telemetry import names
from arpo.telemetry.export import exporting

log = logging.getLogger("arpo.server")
console = Console(stderr=True, highlight=False, soft_wrap=True)

_DEFAULTS = Timeouts()


class Sandbox(StrEnum):
    """How xvfb desktops are isolated."""

    auto = "auto"
    none = "none"


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise typer.BadParameter("not a number of seconds")
    return seconds


@dataclass(frozen=True)
class Options:
    """The command line."""

    provider: str
    host: str
    port: int
    token_file: Path
    settings: ServerSettings
    sandbox: Sandbox
    provider_options: dict[str, object]
    allow: AddressPolicy
    url_file: Path | None
    exit_with: int | None


_DESKTOPS = "Desktops"
_ACCESS = "Who may reach what"
_LIMITS = "Time limits"
_LEGACY = "The legacy API, /env/*"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.command(
    epilog="Example: arpo-env-server --provider xvfb --capacity 4 --port 18082 --token-file ~/env-server.token"
)
def serve(
    provider: Annotated[
        str,
        typer.Option(
            rich_help_panel=_DESKTOPS, help=f"Where desktops come from: {', '.join(provider_names())}."
        ),
    ] = default_provider(),
    provider_option: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_DESKTOPS,
            metavar="KEY=VALUE",
            help="An option of the provider's own, e.g. vm_path=/vms/Ubuntu.vmx (vmware) or image=/vms/Ubuntu.qcow2 (qemu);"
            " repeatable. docs/desktops.md lists them.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            rich_help_panel=_ACCESS,
            help="Address to listen on. Plain HTTP: leave this machine only over a tunnel or a private network."
            " 0.0.0.0 listens everywhere.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            rich_help_panel=_ACCESS, min=0, max=65535, help="Port to listen on; 0 takes a free one."
        ),
    ] = 18082,
    token_file: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_ACCESS,
            help="Bearer tokens, one a line: TOKEN SCOPES NAME, of which the last two may be left out. All are valid; read "
            "again when it changes; made (mode 0600) when it is missing. Default: ~/.config/arpo/env-server.token",
        ),
    ] = None,
    capacity: Annotated[
        int, typer.Option(rich_help_panel=_DESKTOPS, min=1, help="How many desktops can be leased at once.")
    ] = 1,
    spares: Annotated[
        int,
        typer.Option(
            rich_help_panel=_DESKTOPS,
            min=0,
            help="Clean desktops kept besides, so that a lease need not wait for a cleaning.",
        ),
    ] = 0,
    sessions_per_token: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_ACCESS,
            min=1,
            help="Sessions that one token (or name) may have at once. Default: no limit.",
        ),
    ] = None,
    screen: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_DESKTOPS,
            metavar="WxH",
            help="Screen size in pixels. Default: 1280x720; vmware and docker: 1920x1080.",
        ),
    ] = None,
    sandbox: Annotated[
        Sandbox,
        typer.Option(
            rich_help_panel=_DESKTOPS,
            help="xvfb: auto isolates every desktop or refuses to start; none does not isolate.",
        ),
    ] = Sandbox.auto,
    allow_address: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_ACCESS,
            metavar="NAME|CIDR",
            help="What the URLs in tasks may reach besides public addresses, e.g. files.lab.internal or 10.0.0.0/8. "
            "May be repeated.",
        ),
    ] = None,
    start_timeout_s: Annotated[
        float,
        typer.Option(
            rich_help_panel=_LIMITS, callback=_finite, min=0.1, help="Seconds for starting a desktop."
        ),
    ] = _DEFAULTS.start_s,
    reset_timeout_s: Annotated[
        float,
        typer.Option(
            rich_help_panel=_LIMITS,
            callback=_finite,
            min=0.1,
            help="Seconds for getting a used desktop clean.",
        ),
    ] = _DEFAULTS.reset_s,
    setup_timeout_s: Annotated[
        float,
        typer.Option(rich_help_panel=_LIMITS, callback=_finite, min=0.1, help="Seconds for a task's setup."),
    ] = _DEFAULTS.setup_s,
    step_timeout_s: Annotated[
        float,
        typer.Option(
            rich_help_panel=_LIMITS,
            callback=_finite,
            min=0.1,
            help="Seconds for a step and the quiet after it.",
        ),
    ] = _DEFAULTS.step_s,
    evaluate_timeout_s: Annotated[
        float,
        typer.Option(
            rich_help_panel=_LIMITS, callback=_finite, min=0.1, help="Seconds for a task's evaluators."
        ),
    ] = _DEFAULTS.evaluate_s,
    drain_s: Annotated[
        float,
        typer.Option(
            rich_help_panel=_LIMITS,
            callback=_finite,
            min=0,
            help="Seconds that running steps and evaluations get when the server is stopped.",
        ),
    ] = 20.0,
    legacy_profile: Annotated[
        ProfileName,
        typer.Option(rich_help_panel=_LEGACY, help="/env/*: how the policy speaks and counts pixels."),
    ] = "uitars-1.5",
    legacy_idle_timeout_s: Annotated[
        float,
        typer.Option(rich_help_panel=_LEGACY, min=1, help="/env/*: seconds of silence that end an episode."),
    ] = LegacySettings.idle_timeout_s,
    url_file: Annotated[
        Path | None, typer.Option(help="Write the server's URL here once it accepts connections.")
    ] = None,
    exit_with: Annotated[
        int | None,
        typer.Option(metavar="PID", help="Stop when this process, which started the server, is gone."),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What to log to stderr.")] = LogLevel.info,
) -> int:
    """Serve desktops to trainers over HTTP: lease one, act on it, have it scored.

    Every request needs a token of the token file: copy that file to the trainer.
    GET /readyz says whether a desktop can be leased now, and why not.
    SIGTERM or Ctrl-C stops the server and its desktops.
    """
    configure_logging(log_level)
    timeouts = Timeouts(
        start_s=start_timeout_s,
        reset_s=reset_timeout_s,
        setup_s=setup_timeout_s,
        step_s=step_timeout_s,
        evaluate_s=evaluate_timeout_s,
    )
    options = Options(
        provider=provider,
        host=host,
        port=port,
        token_file=token_file or default_token_file(),
        settings=ServerSettings(
            provider=provider,
            screen=_screen(screen) if screen else default_screen(provider),
            capacity=capacity,
            spares=spares,
            timeouts=timeouts,
            sessions_per_caller=sessions_per_token,
            drain_grace_s=drain_s,
            legacy=LegacySettings(profile=legacy_profile, idle_timeout_s=legacy_idle_timeout_s),
            access_log=log_level is LogLevel.debug,
        ),
        sandbox=sandbox,
        provider_options=parse_options(provider_option or ()),
        allow=AddressPolicy.parse(allow_address or ()),
        url_file=url_file,
        exit_with=exit_with,
    )
    with exporting(names.ENV_SERVER, log.warning):
        return asyncio.run(_serve_until_stopped(options))


async def _serve_until_stopped(options: Options) -> int:
    with stop_request() as stop:
        return await _serve(options, stop)


async def _serve(options: Options, stop: StopRequest) -> int:
    """Run the server until it is told to stop; returns the exit code."""
    settings = options.settings
    # The other providers have nothing to isolate from this machine.
    extra = {"sandbox": options.sandbox.value} if options.provider == "xvfb" else {}
    provider = make_provider(
        options.provider,
        screen=settings.screen,
        desktops=settings.capacity + settings.spares,
        start_timeout_s=settings.timeouts.start_s,
        **(extra | options.provider_options),
    )
    await provider.preflight()
    listener = bind(options.host, options.port)
    without_token = legacy_access(os.environ, listener.getsockname()[0])
    made = ensure_token_file(options.token_file)
    tokens = TokenFile(options.token_file)
    with published(options.url_file) as publish:
        width, height = settings.screen
        console.print(
            f"arpo-env-server {arpo.__version__}: {settings.capacity} × {options.provider}, {width}×{height}\n"
            f"tokens: {escape(str(options.token_file))}{' (made just now)' if made else ''}"
        )
        if without_token is not None:
            console.print(f"{NO_TOKEN}=1: any program of this machine may use /env/* without a token")
        async with (
            _closing(provider),
            _closing(
                EvaluatorPool(min(settings.capacity, os.cpu_count() or 1), allow=options.allow)
            ) as evaluators,
            running_server(
                _factory(provider, evaluators, Sources(allow=options.allow), settings.timeouts),
                listener,
                tokens,
                settings,
                without_token,
            ) as server,
        ):
            publish(server.url)
            console.print(f"listening on {server.url}")
            ends = {asyncio.create_task(stop.wait()), server.stopped}
            if options.exit_with is not None:
                ends.add(asyncio.create_task(_parent_gone(options.exit_with)))
            ended, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if server.stopped in ended:
                raise RuntimeError("the HTTP server ended by itself")
            console.print("stopping: ending sessions and desktops")
    if stop.signal is signal.SIGINT:
        return EXIT_INTERRUPTED  # `run_app` says so
    console.print("stopped")
    return 0


async def _parent_gone(parent: int) -> None:
    await parent_gone(parent)
    log.warning("the process that started this server (%d) is gone", parent)


class _Closable(Protocol):
    async def close(self) -> None: ...


_C = TypeVar("_C", bound=_Closable)


@asynccontextmanager
async def _closing(resource: _C) -> AsyncIterator[_C]:
    try:
        yield resource
    finally:
        await resource.close()


def _factory(
    provider: Provider, evaluators: EvaluatorPool, sources: Sources, timeouts: Timeouts
) -> DesktopFactory:
    limits = DesktopTimeouts(
        start_s=timeouts.start_s,
        reset_s=timeouts.reset_s,
        setup_s=timeouts.setup_s,
        step_s=timeouts.step_s,
        evaluate_s=timeouts.evaluate_s,
    )

    async def start() -> Desktop:
        desktop = GuestDesktop(provider, timeouts=limits, sources=sources, evaluators=evaluators)
        await desktop.start()
        return desktop

    return start


def _screen(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ConfigError(
            f"--screen {text!r} is no size; fix: width x height in pixels, e.g. --screen 1280x720"
        )
    return int(width), int(height)


def main() -> None:
    """The `arpo-env-server` command."""
    run_app(app)


if __name__ == "__main__":
    main()
