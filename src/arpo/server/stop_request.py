"""Signals that ask the server for an end."""

from __future__ import annotations

import asyncio
import signal


class StopRequest:
    """The first signal that asked for an end. Later ones change nothing: the end has a time limit of its own."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked = asyncio.Event()
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK"):  # of the last two, a system has one
            number = getattr(signal, name, None)
            # nohup: whoever started the server wants it to outlive the terminal.
            if number is not None and (name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN):
                self._listen(number)

    async def wait(self) -> None:
        """Return once an end was asked for."""
        await self._asked.wait()

    def _listen(self, number: signal.Signals) -> None:
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(number, self._ask, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._ask, number))

    def _ask(self, number: signal.Signals) -> None:
        if self.signal is None:
            self.signal = number
        self._asked.set()
