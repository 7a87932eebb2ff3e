"""The run's env-server: one that is already there, or one that is started for it. Needs no torch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from arpo.client import EnvClient
from arpo.config.model import Config
from arpo.config.sections import EnvSection
from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError
from arpo.protocol.tokens import Scope, parse_tokens, token_for
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
            url, token = config.env.url, read_token(config.env)
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


def read_token(env: EnvSection) -> str:
    """The token for `env.url`: the first trainer's of its token file. Raises ConfigError."""
    if env.token_file is None:
        raise ConfigError(
            "env.url is set without env.token_file; fix: env.token_file=FILE with the server's token"
        )
    try:
        tokens = parse_tokens(env.token_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"env.token_file={env.token_file} cannot be read: {error}") from error
    token = token_for(tokens, Scope.TRAINER)
    if token is None:
        raise ConfigError(
            f"env.token_file={env.token_file} holds no trainer's token; fix: copy the env-server's there"
        )
    return token.secret
