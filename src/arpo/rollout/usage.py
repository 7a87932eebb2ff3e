"""How busy desktops and engine are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Utilisation:
    """Over a span of time. desktops: share of them that had an episode. engine: share of the time in which it had work.

    requests: the mean number that it had at once.
    """

    seconds: float
    desktops: float
    engine: float
    requests: float


class Usage:
    """Counts episodes and requests as they begin and end.

    desktops: how many there are. clock: seconds from any beginning.
    """

    def __init__(self, desktops: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._desktops = desktops
        self._clock = clock
        self._begin = self._last = clock()
        self.episodes = 0
        self.requests = 0
        self._episode_s = self._request_s = self._engine_s = 0.0

    def episode(self, change: int) -> None:
        """+1: an episode begins; -1: one ends."""
        self._elapse()
        self.episodes += change

    def request(self, change: int) -> None:
        """+1: a reply is asked for; -1: it is there."""
        self._elapse()
        self.requests += change

    def utilisation(self) -> Utilisation:
        """Since the last call."""
        result = self.so_far()
        self._begin = self._last
        self._episode_s = self._request_s = self._engine_s = 0.0
        return result

    def so_far(self) -> Utilisation:
        """Since the last call of `utilisation`, which stays the last."""
        self._elapse()
        seconds = self._last - self._begin
        span = seconds or 1.0
        return Utilisation(
            seconds=seconds,
            desktops=self._episode_s / (span * self._desktops),
            engine=self._engine_s / span,
            requests=self._request_s / span,
        )

    def _elapse(self) -> None:
        now = self._clock()
        passed, self._last = now - self._last, now
        self._episode_s += passed * self.episodes
        self._request_s += passed * self.requests
        self._engine_s += passed * (self.requests > 0)
