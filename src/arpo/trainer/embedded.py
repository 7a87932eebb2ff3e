"""An env-server that lives as long as a run: started with it, restarted when it dies, stopped with it.

Invariant: whatever ends the run (return, error, Ctrl-C, SIGKILL), the env-server and its desktops end too: the server
watches its parent, and leaving the context sends SIGTERM and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from arpo.config.sections import EnvSection
from arpo.console import EXIT_CONFIG
from arpo.protocol.problems import ArpoError, ConfigError
from arpo.scratch import ScratchFolder

STOP_TIMEOUT_S = 30.0
DRAIN_S = 3.0
"""The run is over when its server is stopped: nobody waits for what its desktops still do."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0
_OURS = frozenset({"RAY_AUTH_TOKEN", "OTEL_SERVICE_NAME"})
STABLE_S = 60.0
"""A server that ran for this long before it ended is restarted as soon as one that ends for the first time."""


class EmbeddedServer:
    """Async context manager around an `arpo-env-server` child process on a free port with a token of its own.

    log: file that gets the server's output. say: told in one line when the server ends by itself.
    start_timeout_s: until its HTTP port answers.
    Raises ConfigError when the server refuses its configuration (missing packages, no namespaces, ...).
    """

    def __init__(
        self, env: EnvSection, log: Path, say: Callable[[str], None], *, start_timeout_s: float = 120.0
    ) -> None:
        self._env = env
        self._log = log
        self._said_before = 0
        self._say = say
        self._start_timeout_s = start_timeout_s
        self._private = ScratchFolder("arpo-env-")
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.token = secrets.token_urlsafe(32)
        self.url = ""
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> Self:
        folder = self._private.path
        token_file = folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(self.token + "\n")
        try:
            await self._start(port=0)
        except BaseException:
            await self._stop()
            raise
        self._supervisor = asyncio.create_task(self._supervise())
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self._supervisor:
                self._supervisor.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._supervisor
        finally:
            await self._stop()

    def _command(self, port: int) -> Sequence[str]:
        env, folder = self._env, self._private.path
        width, height = env.screen
        limits = env.timeouts
        return (
            sys.executable, "-m", "arpo.server.cli",
            "--provider", env.provider,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--capacity", str(env.desktops),
            "--screen", f"{width}x{height}",
            "--sandbox", env.sandbox,
            "--token-file", str(folder / "token"),
            "--url-file", str(folder / "url"),
            "--start-timeout-s", str(limits.start_s),
            "--reset-timeout-s", str(limits.reset_s),
            "--setup-timeout-s", str(limits.setup_s),
            "--step-timeout-s", str(limits.step_s),
            "--evaluate-timeout-s", str(limits.evaluate_s),
            *(f"--provider-option={name}={value}" for name, value in env.provider_options.items()),
            *(f"--allow-address={address}" for address in env.allow_addresses),
            "--drain-s", str(DRAIN_S),
            "--exit-with", str(os.getpid()),
        )  # fmt: skip

    async def _start(self, port: int) -> None:
        url_file = self._private.path / "url"
        url_file.unlink(missing_ok=True)
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = self._log.open("ab")
        except OSError as error:
            raise ConfigError(
                f"{self._log} cannot be written: {error.strerror}; fix: a writable folder"
            ) from error
        with log:
            self._said_before = log.tell()
            # In traces it has a name of its own.
            # Its desktops run what the policy asks for, and must never give orders to the run's Ray cluster.
            # A session of its own: Ctrl-C in the terminal reaches the trainer only, which then stops the server in order.
            self._process = await asyncio.create_subprocess_exec(
                *self._command(port),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if name not in _OURS},
                start_new_session=True,
            )
        deadline = time.monotonic() + self._start_timeout_s
        while not url_file.exists():
            if self._process.returncode is not None:
                raise self._refusal(self._process.returncode)
            if time.monotonic() > deadline:
                await self._kill(self._process)
                raise ArpoError(
                    f"the env-server did not answer within {self._start_timeout_s:.0f} s; see {self._log}"
                )
            await asyncio.sleep(0.05)
        self.url = url_file.read_text().strip()

    def _refusal(self, returncode: int) -> ArpoError:
        output = self._log.read_bytes()[self._said_before :].decode(errors="replace")
        lines = output.strip().splitlines() or ["(it said nothing)"]
        if returncode == EXIT_CONFIG:
            reason = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
            return ConfigError(reason.removeprefix("error: "))
        return ArpoError(f"the env-server ended with exit code {returncode}: {lines[-1]} (log: {self._log})")

    async def _supervise(self) -> None:
        """Restart the server on the same port whenever it ends by itself, after pauses that grow while it does not last."""
        pause = FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            assert self._process is not None  # noqa: S101 - __aenter__ started it
            code = await self._process.wait()
            self._say(f"the env-server ended (exit code {code}; log: {self._log}); starting it again")
            if time.monotonic() - started > STABLE_S:
                pause = FIRST_PAUSE_S
            while True:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                try:
                    await self._start(port=urlsplit(self.url).port or 0)
                except (ArpoError, OSError) as error:
                    self._say(f"the env-server could not be started again: {error}")
                else:
                    break
            self.restarts += 1

    async def _stop(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                await self._kill(process)
        self._private.remove()

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
