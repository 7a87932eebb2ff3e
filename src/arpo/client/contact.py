"""Whether the env-server answers, for those who have to know: what runs while it does not is nobody's delay.

Invariant: contact is lost at the first attempt without an answer and regained at the next answer; every watcher is told
of both, once each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

OUTAGE_S = 10.0
"""Silence from here on is an outage; less is a bad network."""

Watcher = Callable[[bool], None]
"""Told True when contact is lost, False when it is regained."""


class Contact:
    """Of one client. Times are of the monotonic clock. reason: of the last attempt without an answer."""

    def __init__(self) -> None:
        self.lost_at: float | None = None
        self.reason = ""
        self._watchers: list[Watcher] = []
        self._last_outage_end = float("-inf")

    def lose(self, reason: str) -> None:
        """An attempt got no answer."""
        self.reason = reason
        if self.lost_at is None:
            self.lost_at = time.monotonic()
            self._tell(True)

    def regain(self) -> None:
        """There was an answer."""
        if self.lost_at is not None:
            now = time.monotonic()
            if now - self.lost_at >= OUTAGE_S:
                self._last_outage_end = now
            self.lost_at = None
            self._tell(False)

    def outage_since(self, begun: float) -> bool:
        """Whether something that began then has met with an outage, or there is no contact now."""
        return self.lost_at is not None or self._last_outage_end >= begun

    @contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """The watcher is told inside; at once, if there is no contact now."""
        self._watchers.append(watcher)
        try:
            if self.lost_at is not None:
                watcher(True)
            yield
        finally:
            self._watchers.remove(watcher)

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[None]:
        """`asyncio.timeout` whose clock stands still while there is no contact. None: no limit."""
        if seconds is None:
            yield
            return
        loop = asyncio.get_running_loop()
        left = seconds
        async with asyncio.timeout(seconds) as limit:

            def stand_still(lost: bool) -> None:
                nonlocal left
                if limit.expired():
                    return
                if lost:
                    left = max(0.0, (limit.when() or 0.0) - loop.time())
                    limit.reschedule(None)
                else:
                    limit.reschedule(loop.time() + left)

            with self.watched(stand_still):
                yield

    def _tell(self, lost: bool) -> None:
        for watcher in list(self._watchers):
            watcher(lost)
