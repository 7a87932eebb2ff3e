"""The run's env-server: one that is already there, or one that is started for it. Needs no torch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from arpo.client import ClientTimeouts, EnvClient
from arpo.client.contact import OUTAGE_S, Contact
from arpo.client.token_file import read_token
from arpo.config.model import Config
from arpo.config.sections import EnvSection
from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError
from arpo.protocol.tokens import Scope
from arpo.trainer.embedded import EmbeddedServer
from arpo.trainer.progress import Reporter
from arpo.trainer.status import duration

_REMIND_S = 600.0


@asynccontextmanager
async def env_client(
    config: Config, log: Path, reporter: Reporter
) -> AsyncIterator[tuple[EnvClient, EmbeddedServer | None]]:
    """A client of the configured env-server, which is started first when no URL is given; ready to lease desktops."""
    async with AsyncExitStack() as stack:
        server: EmbeddedServer | None = None
        if config.env.url is None:
            reporter.say(f"starting an env-server with {config.env.desktops} {config.env.provider} desktops")
            server = await stack.enter_async_context(EmbeddedServer(config.env, log, reporter.say))
            url, token = server.url, server.token
        else:
            url, token = config.env.url, env_token(config.env)
        client = await stack.enter_async_context(EnvClient(url, token, timeouts=_timeouts(config.env)))
        stack.enter_context(told_of_outages(client.contact, url, reporter.say))
        try:
            await client.wait_ready(
                _start_s(config.env), lambda why: reporter.say(f"waiting for a desktop: {why}")
            )
        except ProblemError as error:
            if error.code is ProblemCode.UNAUTHORIZED and config.env.token_file is not None:
                raise ConfigError(
                    f"{url} does not take the token in env.token_file={config.env.token_file}; fix: copy the server's"
                ) from error
            raise
        reporter.say(f"env-server is ready at {url}")
        yield client, server


class Comeback:
    """Where episodes wait for an env-server that is away, with one request at a time, however many they are.

    limit_s: None: for ever.
    """

    def __init__(self, client: EnvClient, limit_s: float | None) -> None:
        self._client = client
        self._limit_s = limit_s
        self._asking = asyncio.Lock()

    async def wait(self) -> None:
        """Until it has a desktop that works. Raises ProblemError start_failed after the limit."""
        async with self._asking:
            await self._client.wait_ready(self._limit_s)


@contextmanager
def told_of_outages(contact: Contact, url: str, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, a person is told when the env-server has been silent for some time, now and then while it is, and at its
    return.
    """
    loop = asyncio.get_running_loop()
    since = loop.time()
    told = False
    waiting: asyncio.TimerHandle | None = None

    def tell() -> None:
        nonlocal told, waiting
        how_long = "" if not told else f" for {duration(loop.time() - since)}"
        say(f"no answer from the env-server at {url}{how_long}: {contact.reason}; waiting for it")
        told = True
        waiting = loop.call_later(_REMIND_S, tell)

    def watch(lost: bool) -> None:
        nonlocal since, told, waiting
        if waiting is not None:
            waiting.cancel()
        waiting = None
        if lost:
            since, told = loop.time(), False
            waiting = loop.call_later(OUTAGE_S, tell)
        elif told:
            say(f"the env-server at {url} answers again after {duration(loop.time() - since)}")

    with contact.watched(watch):
        try:
            yield
        finally:
            if waiting is not None:
                waiting.cancel()


def _timeouts(env: EnvSection) -> ClientTimeouts:
    """A server of the run's own that is gone takes its sessions along; another one may only be out of reach."""
    if env.url is None:
        return ClientTimeouts()
    return ClientTimeouts(outage_s=math.inf if env.outage_s is None else env.outage_s)


def _start_s(env: EnvSection) -> float | None:
    if env.url is None:
        return env.timeouts.start_s
    return None if env.outage_s is None else max(env.timeouts.start_s, env.outage_s)


def env_token(env: EnvSection) -> str:
    """The token for `env.url`. Raises ConfigError."""
    if env.token_file is None:
        raise ConfigError(
            "env.url is set without env.token_file; fix: env.token_file=FILE with the server's token"
        )
    return read_token(env.token_file, Scope.TRAINER, "env.token_file")
