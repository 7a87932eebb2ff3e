"""Signals, answered for as long as something runs.

Invariant: afterwards a signal does what it did before, unless something inside has given it an answer that is to last.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def handled(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Inside, Python calls the handler between two of its instructions; it may raise."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            if signal.getsignal(number) is handler:
                _set(number, old)


@contextmanager
def answered(numbers: Iterable[signal.Signals], answer: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Inside, the running event loop calls `answer` with the signal, each time that one arrives."""
    loop = asyncio.get_running_loop()
    before, ours = {}, {}
    for number in numbers:
        before[number] = signal.getsignal(number)
        try:
            # not `signal.signal` everywhere: this way system calls of libraries are not interrupted
            loop.add_signal_handler(number, answer, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda got, _: loop.call_soon_threadsafe(answer, signal.Signals(got)))
        ours[number] = signal.getsignal(number)
    try:
        yield
    finally:
        for number, old in before.items():
            now = signal.getsignal(number)
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)  # which leaves the system's own
            _set(number, old if now is ours[number] else now)


class StopRequest:
    """The first signal that asked for an end. Later ones change nothing: the end has a time limit of its own."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked = asyncio.Event()

    async def wait(self) -> None:
        """Return once an end was asked for."""
        await self._asked.wait()

    def ask(self, number: signal.Signals) -> None:
        """Ask for the end."""
        self.signal = self.signal or number
        self._asked.set()


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Inside, the signals that end a program are requests to stop."""
    stop = StopRequest()
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")  # of the last two, a system has one
    numbers = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    # nohup: whoever started the program wants it to outlive the terminal
    wanted = [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]
    with answered(wanted, stop.ask):
        yield stop


def _set(number: signal.Signals, handler: Any) -> None:
    signal.signal(number, handler or signal.SIG_DFL)  # None: one that C has set
