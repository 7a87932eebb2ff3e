"""Work that runs only while the weights stay as they are.

Invariant: while the gate is closed no work runs, and what runs through an open gate has ended, or was cut short and
knows it, before `close` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Gate:
    """Open at first. For one event loop."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Run it once the gate is open. False: closing cut it short. Raises what it raises.

        `work` is cancelled to cut it short, and when the caller is.
        """
        await self._open.wait()
        task = asyncio.create_task(work())
        self._running.add(task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            await _cancel({task})
            raise
        finally:
            self._running.discard(task)
        if task.cancelled():
            return False
        task.result()
        return True

    async def close(self) -> None:
        """Let nothing begin, and cut short what runs."""
        self._open.clear()
        await _cancel(self._running)

    def open(self) -> None:
        """Let work run again."""
        self._open.set()


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    waiting = set(tasks)
    for task in waiting:
        task.cancel()
    if waiting:
        await asyncio.wait(waiting)
