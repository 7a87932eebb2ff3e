"""Where the time of an operation goes: seconds by phase.

Code that takes time says so with `phase`, whoever called it; whoever wants to know wraps the call in `record`.
Without a recorder around it a phase costs next to nothing.

Invariant: phases recorded at the same time by different tasks never mix; a task started inside a recorder counts
towards it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Interval(NamedTuple):
    """One run of a phase. start: of `time.monotonic`."""

    name: str
    start: float
    seconds: float


class Phases(dict[str, float]):
    """Seconds by phase, in the order in which the phases ended first; a phase that ran twice counts its sum.

    intervals: every run of a phase, in the order in which they ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.intervals: list[Interval] = []

    def add(self, interval: Interval) -> None:
        """Count a phase."""
        self[interval.name] = self.get(interval.name, 0.0) + interval.seconds
        self.intervals.append(interval)


_recorder: ContextVar[Phases | None] = ContextVar("arpo_phases", default=None)


@contextmanager
def record() -> Iterator[Phases]:
    """Collect the phases of everything awaited inside, instead of an outer recorder."""
    phases = Phases()
    token = _recorder.set(phases)
    try:
        yield phases
    finally:
        _recorder.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the seconds spent inside under a name, also when it raises."""
    start = time.monotonic()
    try:
        yield
    finally:
        add_phase(name, time.monotonic() - start, start)


def add_phase(name: str, seconds: float, start: float | None = None) -> None:
    """Count seconds that somebody else has measured, a guest for instance. start: by default they end now."""
    phases = _recorder.get()
    if phases is not None:
        phases.add(Interval(name, time.monotonic() - seconds if start is None else start, seconds))
