"""What a scheduler goes by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerRules:
    """How episodes are scheduled; the fields are those of `RolloutSection`, which explains them.

    groups_per_step: of which a batch consists. max_staleness: None: there is no bound, and no learner.
    """

    group_size: int
    groups_per_step: int
    max_retries: int
    seed: int
    max_staleness: int | None = 0
    oversample: int = 0
    overdue_factor: float | None = None
    overdue_min_s: float = 0.0
    early_close_share: float = 0.5
    refill: int = 0
