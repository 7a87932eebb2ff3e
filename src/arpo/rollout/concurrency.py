"""How many episodes run at once. Pure.

Invariant: between 1 and the number of desktops; it rises while the engine keeps up and falls when requests queue there. An
episode more would then not be sampled sooner: it would only make all of them longer, and the policy that began them older.
"""

from __future__ import annotations

_QUEUED_HIGH, _QUEUED_LOW = 0.6, 0.5
"""Share of a reply's time that it waited for the engine. An engine of static batches that is never idle shows a half: while
one batch is sampled the next one gathers."""
_FALL = 0.9


class Concurrency:
    """Additive increase, multiplicative decrease (AIMD), once for every `limit` replies.

    desktops: the most. adaptive: False: always that many.
    """

    def __init__(self, desktops: int, *, adaptive: bool) -> None:
        self._desktops = desktops
        self._adaptive = adaptive
        self._limit = desktops
        self._replies = 0
        self._queued_s = self._seconds = 0.0

    @property
    def limit(self) -> int:
        """Episodes that may run at once now."""
        return self._limit

    def replied(self, queued_s: float, seconds: float) -> None:
        """A reply took so many seconds, of which it waited `queued_s`."""
        if not self._adaptive:
            return
        self._replies += 1
        self._queued_s += queued_s
        self._seconds += seconds
        if self._replies < self._limit:
            return
        queued = self._queued_s / self._seconds if self._seconds else 0.0
        if queued > _QUEUED_HIGH:
            self._limit = max(1, int(self._limit * _FALL))
        elif queued < _QUEUED_LOW:
            self._limit = min(self._desktops, self._limit + 1)
        self._replies, self._queued_s, self._seconds = 0, 0.0, 0.0
