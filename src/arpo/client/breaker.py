"""When to leave a server that does not answer alone: a circuit breaker, pure; the time is passed in.

Invariants
- It opens only after `failures` failed attempts in a row, and any answer closes it.
- While it is not closed nothing passes but one probe at a time, after pauses that grow up to `longest_s`.
- What became of an attempt that was begun before the circuit last changed says nothing about the server now,
  unless it is an answer.

    closed ──k failures──▶ open ──pause over──▶ half-open (one probe) ──failed──▶ open, for longer
       ▲                                            │
       └───────────────── an answer ────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class CircuitState(Enum):
    """What the breaker lets pass."""

    CLOSED = "closed"
    """Everything."""
    OPEN = "open"
    """Nothing until its pause is over."""
    HALF_OPEN = "half-open"
    """Nothing: a probe is on its way."""


@dataclass(frozen=True)
class BreakerRules:
    """failures: attempts without an answer, one after the other, that open the circuit. first_s, longest_s: the pause
    before the first probe in seconds, and the longest that doubling makes of it."""

    failures: int = 5
    first_s: float = 0.5
    longest_s: float = 5.0


@dataclass(frozen=True)
class Ticket:
    """Leave to make one attempt. probe: it is the one that decides whether others may follow."""

    epoch: int
    probe: bool


class CircuitBreaker:
    """The breaker of one server. `now`: seconds on any clock that never goes back."""

    def __init__(self, rules: BreakerRules) -> None:
        self._rules = rules
        self._state = CircuitState.CLOSED
        self._epoch = 0
        self._failures = 0
        self._pause_s = rules.first_s
        self._probe_at = 0.0

    @property
    def state(self) -> CircuitState:
        """What it lets pass."""
        return self._state

    def admit(self, now: float) -> Ticket | None:
        """Leave for an attempt; for a probe when one is due; None while there is nothing to do but wait.

        Every ticket comes back by `answered`, `failed` or `abandoned`.
        """
        if self._state is CircuitState.CLOSED:
            return Ticket(self._epoch, probe=False)
        if self._state is CircuitState.OPEN and now >= self._probe_at:
            self._move(CircuitState.HALF_OPEN)
            return Ticket(self._epoch, probe=True)
        return None

    def wait_s(self, now: float) -> float:
        """Seconds until the next probe is due; 0 when nothing keeps an attempt, or the probe on its way, from
        deciding.
        """
        return max(0.0, self._probe_at - now) if self._state is CircuitState.OPEN else 0.0

    def answered(self) -> None:
        """The server answered an attempt, whenever that was begun: it lives."""
        self._failures = 0
        self._pause_s = self._rules.first_s
        if self._state is not CircuitState.CLOSED:
            self._move(CircuitState.CLOSED)

    def failed(self, ticket: Ticket, now: float) -> None:
        """An attempt got no answer."""
        if ticket.epoch != self._epoch:
            return
        if ticket.probe:
            self._pause_s = min(self._rules.longest_s, 2 * self._pause_s)
            self._open(now)
            return
        self._failures += 1
        if self._failures >= self._rules.failures:
            self._open(now)

    def abandoned(self, ticket: Ticket, now: float) -> None:
        """An attempt was given up before anything could be known; a probe is due again at once."""
        if ticket.probe and ticket.epoch == self._epoch:
            self._move(CircuitState.OPEN)
            self._probe_at = now

    def _open(self, now: float) -> None:
        self._move(CircuitState.OPEN)
        self._failures = 0
        self._probe_at = now + self._pause_s

    def _move(self, state: CircuitState) -> None:
        self._state = state
        self._epoch += 1
