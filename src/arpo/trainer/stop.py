"""How a training run is stopped: in order, with a checkpoint, and with an exit code that says how to go on.

Invariant: what must not be torn is finished before the stop takes effect, if that takes no longer than the grace period;
the first signal decides, and none of those that follow it breaks anything.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

from arpo.console import EXIT_INTERRUPTED, EXIT_RESUME, Stopped
from arpo.signals import answered, handled

T = TypeVar("T")
_CODES = {signal.SIGTERM: EXIT_RESUME, signal.SIGINT: EXIT_INTERRUPTED}


class Stop:
    """A request to stop, made by a signal, that cancels the task it was given at the next place where that may be.

    grace_s: how long `held_off` may make it wait.
    """

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self._task: asyncio.Future[Any] | None = None
        self._signal: signal.Signals | None = None
        self._held_off = False
        self.overdue = False
        """Whether the grace period ended before what was not to be torn; its thread still computes."""
        self.result = "nothing to save"
        """What became of the run's state, in a few words; the run's last line has them."""

    @property
    def asked(self) -> bool:
        """Whether someone asked for the stop."""
        return self._signal is not None

    @property
    def ended(self) -> Stopped:
        """How the process ends."""
        assert self._signal is not None  # noqa: S101 - nobody asks before
        said = "stopped" if self._signal == signal.SIGINT else "terminated"
        return Stopped(f"{said}: {self.result}; the same command goes on", _CODES[self._signal])

    def attach(self, task: asyncio.Future[Any]) -> None:
        """The task that is cancelled."""
        self._task = task

    def ask(self, number: signal.Signals) -> None:
        """Ask for the stop; asking again changes nothing."""
        if self._signal is not None or self._task is None:
            return
        self._signal = number
        if self._held_off:
            asyncio.get_running_loop().call_later(self.grace_s, self._give_up)
        else:
            self._task.cancel()

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """A stop that is asked for inside takes effect (as CancelledError) at its end, or after the grace period."""
        self._held_off = True
        try:
            yield
        finally:
            self._held_off = False
        if self.asked:
            raise asyncio.CancelledError

    def _give_up(self) -> None:
        if self._held_off and self._task is not None:
            self.overdue = True
            self.result = (
                f"the step in hand was not done after {self.grace_s:g} s, so the newest checkpoint stands"
            )
            self._task.cancel()


@contextmanager
def stoppable_at_once() -> Iterator[None]:
    """Before there is anything to finish (while torch is being imported), SIGTERM ends the process as it does later."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped("terminated: nothing had begun; the same command goes on", EXIT_RESUME)

    with handled([signal.SIGTERM], end):
        yield


async def until_stopped(work: Coroutine[Any, Any, T], stop: Stop) -> T:
    """Run a coroutine until it ends, or until SIGTERM or Ctrl-C stops it: Stopped is raised once everything is released.

    An error on the way down is raised instead. A thread that still computes after the grace period ends with the process.
    """
    task = asyncio.ensure_future(work)
    stop.attach(task)
    with answered(_CODES, stop.ask):
        try:
            return await task
        except asyncio.CancelledError:
            if not stop.asked:
                raise
            if stop.overdue:
                _end(stop.ended)
            # the interpreter waits for its threads; one that computes for long must not keep the process
            leaves = threading.Timer(stop.grace_s, _end, [stop.ended])
            leaves.daemon = True
            leaves.start()
            raise stop.ended from None
        finally:
            if stop.asked:  # a second signal must not end the process before its exit code is given
                for number in _CODES:
                    signal.signal(number, signal.SIG_IGN)


def _end(stopped: Stopped) -> NoReturn:
    print(stopped, file=sys.stderr, flush=True)
    os._exit(stopped.code)
