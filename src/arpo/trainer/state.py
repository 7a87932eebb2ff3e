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


class Progress(BaseModel):
    """Where a run is. per_step: the rows of `metrics.jsonl`. faults: invalid episodes by problem code.

    damaged_checkpoints: that were passed over when the run was resumed.
    """

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    policy_version: int = 0
    warm_start: WarmStart | None = None
    before: EvaluationResult | None = None
    per_step: list[dict[str, float]] = []
    faults: Counter[str] = Counter()
    damaged_checkpoints: int = 0
