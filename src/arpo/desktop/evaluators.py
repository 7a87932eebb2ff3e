"""Runs evaluators in processes of their own, with a time-out that really ends them.

Invariants
- A process serves one call at a time; one whose call timed out, was cancelled or died is never used again.
- A call touches no more of this host than `confinement` says; one that tried to is an error, never a value.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from arpo.desktop import landlock
from arpo.desktop.addresses import AddressPolicy
from arpo.desktop.evaluator_messages import (
    LENGTH,
    MAX_REPLY_BYTES,
    Answer,
    Failure,
    GetterCall,
    MetricCall,
    Order,
    read_reply,
)
from arpo.scratch import ScratchFolder

_log = logging.getLogger(__name__)

RUNS_AGENT_CODE = frozenset({"check_gnome_favorite_apps", "check_python_file_by_test_suite"})
"""Metrics that execute what the agent wrote, on this host, as the env-server's user."""

_INHERITED = (
    "PATH", "PYTHONPATH", "PYTHONHASHSEED", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "SSL_CERT_FILE", "SYSTEMROOT",
)  # fmt: skip  # no proxies: behind one, an address could not be judged, and evaluators talk to the guest


# No bytecode beside the software, which a call may not write; no imports from the working directory, where metrics
# write what agents made.
_OWN = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"}


class EvaluatorError(Exception):
    """An evaluator failed, or cannot be used here."""


class EvaluatorRefused(EvaluatorError):  # noqa: N818 - a decision, not a malfunction
    """An evaluator was kept from what it may not touch: the task, not the agent, is to blame."""


class MissingFile(Exception):  # noqa: N818 - an answer that OSWorld scores as 0
    """A getter raised FileNotFoundError."""


@dataclass(eq=False)
class _Worker:
    process: asyncio.subprocess.Process
    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    folder: ScratchFolder

    async def call(self, order: Order) -> Answer | Failure:
        data = pickle.dumps(order)
        self.stdin.write(LENGTH.pack(len(data)) + data)
        await self.stdin.drain()
        (size,) = LENGTH.unpack(await self.stdout.readexactly(LENGTH.size))
        if size > MAX_REPLY_BYTES:
            raise EvaluatorError(f"it returned more than {MAX_REPLY_BYTES >> 20} MiB")
        body = await self.stdout.readexactly(size)
        return read_reply(body)

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await asyncio.to_thread(self.folder.remove)


class EvaluatorPool:
    """Processes that compute metrics, started when needed and kept.

    workers: how many may run at once; further calls wait (their time-out runs meanwhile).
    run_agent_code: allow the metrics in `RUNS_AGENT_CODE`, which may then start any program.
    allow: what evaluators may reach besides their guest and public addresses.
    """

    def __init__(
        self, workers: int = 2, *, run_agent_code: bool = False, allow: AddressPolicy | None = None
    ) -> None:
        self._slots = asyncio.Semaphore(workers)
        self._idle: list[_Worker] = []
        self._run_agent_code = run_agent_code
        self._allow = allow or AddressPolicy()
        self._warned = False

    async def call(self, request: MetricCall | GetterCall, *, timeout_s: float) -> object:
        """The value of a metric or getter.

        Raises EvaluatorError (EvaluatorRefused when it overstepped its limits), MissingFile (getters only) or
        TimeoutError.
        """
        runs_agent_code = isinstance(request, MetricCall) and request.name in RUNS_AGENT_CODE
        if runs_agent_code and not self._run_agent_code:
            raise EvaluatorError(
                "refused on an env-server: it would execute files that the agent wrote on the env-server's host"
            )
        async with asyncio.timeout(timeout_s), self._worker() as worker:
            try:
                reply = await worker.call(Order(request, self._allow, runs_agent_code))
            except pickle.UnpicklingError as error:
                raise EvaluatorError(f"its process sent what is not plain data: {error}") from error
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                code = await worker.process.wait()
                raise EvaluatorError(f"its process died with code {code}") from error
        if isinstance(reply, Answer):
            return reply.value
        if reply.refused:
            raise EvaluatorRefused(reply.reason)
        if reply.missing_file and isinstance(request, GetterCall):
            raise MissingFile(reply.reason)
        raise EvaluatorError(reply.reason)

    async def close(self) -> None:
        """End the processes."""
        while self._idle:
            await self._idle.pop().end()

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[_Worker]:
        async with self._slots:
            worker = await self._next_worker()
            finished = False
            try:
                yield worker
                finished = True
            finally:
                if finished:
                    self._idle.append(worker)
                else:
                    await asyncio.shield(worker.end())

    async def _next_worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.process.returncode is None:
                return worker
            await worker.end()  # killed while idle, by the kernel's memory killer for instance
        if landlock.abi() == 0 and not self._warned:
            self._warned = True
            _log.warning(
                "this system has no Landlock (Linux 5.13 or newer): what evaluators may read is checked in Python only"
            )
        return await _start()


async def _start() -> _Worker:
    # Its own folder: some metrics write into the working directory. Its own small environment: they need no secrets.
    scratch = await asyncio.to_thread(ScratchFolder, "arpo-evaluators-")
    folder = str(scratch.path)
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "arpo.desktop.evaluator_worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=folder,
        env={**environment, **_OWN, "HOME": folder, "TMPDIR": folder, "TEMP": folder, "TMP": folder},
        start_new_session=True,  # Ctrl-C is for the env-server, which ends its processes itself
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a process was started without the pipes asked for")
    return _Worker(process, process.stdin, process.stdout, scratch)
