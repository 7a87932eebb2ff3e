"""Runs synchronous code with a deadline: what it waits for, it waits for through its `Attempt`.

Invariant: when `bounded` is left, however it is left, its thread has ended and no program that it started runs.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from arpo.providers.base import ProviderError

T = TypeVar("T")

_POLL_S = 0.5


class OutOfTime(ProviderError):  # noqa: N818 - what happened
    """The attempt was cancelled or its time is over."""


class CommandFailed(ProviderError):  # noqa: N818 - what happened
    """A program ended with an error; `said` is its output."""

    def __init__(self, command: Sequence[str], said: str) -> None:
        super().__init__(f"{' '.join(command)}: {said}")
        self.said = said


class Attempt:
    """One bounded piece of work in a thread.

    transient: which failed commands are expected for a while (a guest that is still booting), by what they say; any
    other failed command ends the attempt, even if the code that ran it goes on.
    """

    def __init__(self, timeout_s: float, transient: Callable[[str], bool] = lambda said: False) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._transient = transient
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._failure: CommandFailed | None = None
        self._late_at: str | None = None

    def command(self, command: Sequence[str]) -> str:
        """Run a program to its end; returns what it printed. Raises CommandFailed, OutOfTime or ProviderError."""
        self._check()
        try:
            with self._lock:
                # vmrun prints its errors to stdout.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                )
        except OSError as error:
            raise ProviderError(f"cannot start {command[0]}: {error.strerror}") from error
        process = self._process
        try:
            if self._cancelled.is_set():  # between the check and the start
                process.kill()
            said = process.communicate(timeout=max(self._deadline - time.monotonic(), 0.01))[0].strip()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self._check(late_is_fine=True)
            raise self._late(f"{' '.join(command)} did not end") from None
        finally:
            self._process = None
        self._check(late_is_fine=process.returncode == 0)
        if process.returncode != 0:
            self._failure = CommandFailed(command, said or f"exit code {process.returncode}")
            raise self._failure
        self._failure = None
        return said

    def sleep(self, seconds: float) -> None:
        """Wait a little before another try: at most half a second, since our commands are waited for."""
        failure = self._failure
        if failure is not None and not self._transient(failure.said):
            raise failure
        self._cancelled.wait(min(seconds, _POLL_S))
        self._check()

    def cancel(self) -> None:
        """End it from another thread: the program that runs is killed, the next wait raises."""
        self._cancelled.set()
        with self._lock:
            process = self._process
        if process is not None:
            process.kill()

    def _check(self, *, late_is_fine: bool = False) -> None:
        if self._cancelled.is_set():
            raise OutOfTime("cancelled")
        if time.monotonic() >= self._deadline and not late_is_fine:
            raise self._late()

    def _late(self, doing: str = "") -> OutOfTime:
        if self._late_at is None:  # whoever ran it may swallow the first
            failed = str(self._failure) if self._failure else ""
            self._late_at = "; before that: ".join(filter(None, (doing, failed))) or "nothing had failed"
        return OutOfTime(f"not done after {self._timeout_s:g} s: {self._late_at}")


async def bounded(work: Callable[[Attempt], T], attempt: Attempt) -> T:
    """Run `work(attempt)` in a thread; cancelling this ends the attempt and waits for its thread."""
    # A thread of its own: in a crowded pool it would wait for others while its time runs.
    executor = ThreadPoolExecutor(max_workers=1)
    thread = asyncio.get_running_loop().run_in_executor(executor, work, attempt)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        attempt.cancel()
        await asyncio.wait([thread])
        thread.exception()  # it was cancelled; what it says about that is of no interest
        raise
    finally:
        executor.shutdown(wait=False)
