"""The run's env-server: one that is already there, or one that is started for it. Needs no torch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from arpo.client import EnvClient
from arpo.client.token_file import read_token
from arpo.config.model import Config
from arpo.config.sections import EnvSection
from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError
from arpo.protocol.tokens import Scope
from arpo.trainer.embedded import EmbeddedServer
from arpo.trainer.progress import Reporter


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
        client = await stack.enter_async_context(EnvClient(url, token))
        try:
            await client.wait_ready(
                config.env.timeouts.start_s, lambda why: reporter.say(f"waiting for a desktop: {why}")
            )
        except ProblemError as error:
            if error.code is ProblemCode.UNAUTHORIZED and config.env.token_file is not None:
                raise ConfigError(
                    f"{url} does not take the token in env.token_file={config.env.token_file}; fix: copy the server's"
                ) from error
            raise
        reporter.say(f"env-server is ready at {url}")
        yield client, server


def env_token(env: EnvSection) -> str:
    """The token for `env.url`. Raises ConfigError."""
    if env.token_file is None:
        raise ConfigError(
            "env.url is set without env.token_file; fix: env.token_file=FILE with the server's token"
        )
    return read_token(env.token_file, Scope.TRAINER, "env.token_file")
