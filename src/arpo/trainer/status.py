"""How a run stands at a moment, and the same facts for the live display and for a line of a log. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

_STEPS_TIMED = 8
"""The latest steps whose durations say how long the next ones take."""
NONE = "–"


@dataclass(frozen=True)
class Status:
    """A training run now.

    phase: what the learner's side does. step: in hand. episodes: that ended validly since the last step took its batch, of
    about as many as a step takes. success: share of the latest `judged` episodes. limit: episodes that may run at once.
    requests: that the engine has. engine: share of the time in which it had work. staleness: of the last step's episodes,
    mean and most, in policy versions.
    """

    phase: str
    step: int
    steps: int
    episodes: int
    episodes_a_step: int
    success: float | None
    judged: int
    busy: int
    desktops: int
    limit: int
    requests: int
    engine: float | None
    policy_version: int
    staleness: tuple[float, float] | None
    faults: int
    rss_gib: float
    eta_s: float | None

    def facts(self) -> list[str]:
        """What a person asks, most urgent first."""
        success = NONE if self.success is None else f"{100 * self.success:.0f} % of {self.judged}"
        limited = f", limit {self.limit}" if self.limit < self.desktops else ""
        engine = "" if self.engine is None else f", busy {100 * self.engine:.0f} %"
        stale = NONE if self.staleness is None else f"{self.staleness[0]:.1f}, most {self.staleness[1]:.0f}"
        return [
            f"step {self.step}/{self.steps}",
            f"episodes {self.episodes}/{self.episodes_a_step}",
            f"success {success}",
            f"desktops {self.busy}/{self.desktops} busy{limited}",
            f"engine {self.requests} in flight{engine}",
            f"learner {self.phase}",
            f"policy v{self.policy_version}",
            f"staleness {stale}",
            f"faults {self.faults}",
            f"memory {self.rss_gib:.1f} GiB",
            f"ETA {duration(self.eta_s)}",
        ]


def eta_s(
    rows: Sequence[Mapping[str, float]], steps: int, in_hand_s: float, timed: int = _STEPS_TIMED
) -> float | None:
    """Seconds that the steps still to be made will take, evaluations apart; None before two are done.

    rows: the latest of `metrics.jsonl`. steps: in the whole run. in_hand_s: how long ago the step in hand began.
    """
    if len(rows) < 2:
        return None
    a_step = median(row["seconds/step"] for row in rows[-timed:])
    left = max(0, steps - round(rows[-1]["step"]))
    return max(0.0, left * a_step - min(in_hand_s, a_step))


def duration(seconds: float | None) -> str:
    """For people: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds is None:
        return NONE
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
