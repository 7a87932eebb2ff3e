"""What a run has done so far.

Invariant: `Progress` is part of every checkpoint, so a resumed run reports what an uninterrupted one would.
"""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict

from arpo.evaluation.result import EvaluationResult


class WarmStart(BaseModel):
    """What imitation did: demonstrations imitated, optimizer steps, mean probability of sampling a whole demonstration.

    dataset: the folder they come from; None when they were recorded on the desktops.
    """

    model_config = ConfigDict(extra="forbid")

    demonstrations: int
    steps: int
    probability_before: float
    probability_after: float
    seconds: float
    dataset: str | None = None


_ROWS_KEPT = 128
"""A run of any length keeps as much in memory, and in every checkpoint."""


class Progress(BaseModel):
    """Where a run is. per_step: the latest rows of `metrics.jsonl`; what is said of all steps is counted beside them.

    idle_steps: the first of those without an optimizer step. faults: invalid episodes by problem code.
    damaged_checkpoints: that were passed over when the run was resumed.
    """

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    policy_version: int = 0
    warm_start: WarmStart | None = None
    before: EvaluationResult | None = None
    per_step: list[dict[str, float]] = []
    optimizer_steps: int = 0
    replayed: int = 0
    successes: int = 0
    idle_steps: list[int] = []
    faults: Counter[str] = Counter()
    damaged_checkpoints: int = 0

    def add(self, row: dict[str, float]) -> None:
        """Count the metrics of a step that has finished."""
        self.per_step = [*self.per_step, row][-_ROWS_KEPT:]
        self.optimizer_steps += int(row["learner/optimizer_steps"])
        self.replayed += int(row["replay/injected"])
        self.successes += int(row["rollout/successes"])
        if not row["learner/optimizer_steps"] and len(self.idle_steps) < _ROWS_KEPT:
            self.idle_steps.append(int(row["step"]))
