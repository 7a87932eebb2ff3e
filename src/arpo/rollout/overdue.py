"""Which episodes take much longer than the others: those whose desktops are probably stuck.

Invariant: nobody is overdue because of the engine; its time counts for nobody.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from arpo.rollout.groups import Group
from arpo.rollout.rules import SchedulerRules
from arpo.trajectory import Trajectory

_LATEST = 64
_ENOUGH = 8


@dataclass
class Running:
    """An episode on a desktop. started: put off by the time that it waited for the engine. asked: since when it does."""

    id: str
    group: Group
    place: int
    started: float
    asked: float | None = None

    def overdue(self, limit: float, now: float) -> bool:
        """Whether its desktop has had more time than that; no desktop is slow while the engine is."""
        return self.asked is None and self.started + limit <= now


class Durations:
    """Of the latest valid episodes, without what they waited for the engine."""

    def __init__(self, rules: SchedulerRules) -> None:
        self._rules = rules
        self._seconds: deque[float] = deque(maxlen=_LATEST)

    def add(self, trajectory: Trajectory) -> None:
        """One more."""
        self._seconds.append(trajectory.duration_s - trajectory.timings.get("generate", 0.0))

    def limit(self) -> float | None:
        """From which age on an episode is overdue, in seconds; None as long as nobody can tell."""
        factor = self._rules.overdue_factor
        if factor is None or len(self._seconds) < _ENOUGH:
            return None
        return max(factor * median(self._seconds), self._rules.overdue_min_s)
