"""The result of an evaluation: every score, and what follows from the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict

from arpo.evaluation.statistics import Estimate, mean_over_tasks, pass_at_k

SOLVED = 1.0
"""The score of an episode that counts as solved for pass@k. Partial credit counts in the success, not there; it is not
`replay.success_above`, so that evaluations compare whatever a run trained with."""


class TaskResult(BaseModel):
    """One task's scores, valid episodes only; `lost` counts episodes that no retry could save from environment faults."""

    model_config = ConfigDict(extra="forbid")

    task_id: str
    domain: str
    scores: list[float]
    lost: int

    @property
    def success(self) -> float | None:
        """Mean score of its valid episodes; None when there is none."""
        return fmean(self.scores) if self.scores else None

    @property
    def solved(self) -> int:
        """Episodes with the full score."""
        return sum(score >= SOLVED for score in self.scores)


@dataclass(frozen=True)
class Statistics:
    """What some tasks' scores say. success: mean over tasks of a task's mean score; None without a valid episode.

    pass_at: by k, over the tasks that have k valid episodes. episodes: valid ones.
    """

    success: Estimate | None
    pass_at: Mapping[int, Estimate]
    episodes: int
    lost: int

    @classmethod
    def of(cls, tasks: Sequence[TaskResult]) -> Statistics:
        """A task with lost episodes counts with those that it has; one without any is left out."""
        episodes = sum(len(task.scores) for task in tasks)
        means = [task.success for task in tasks if task.success is not None]
        pass_at = {}
        for k in range(1, max((len(task.scores) for task in tasks), default=0) + 1):
            enough = [task for task in tasks if len(task.scores) >= k]
            values = [pass_at_k(len(task.scores), task.solved, k) for task in enough]
            estimate = mean_over_tasks(values, sum(len(task.scores) for task in enough))
            if estimate is not None:
                pass_at[k] = estimate
        return cls(
            mean_over_tasks(means, episodes),
            pass_at,
            episodes=episodes,
            lost=sum(task.lost for task in tasks),
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        success = self.success
        return {
            "success": success.value if success else None,
            "interval": [success.low, success.high] if success else None,
            "pass_at": {str(k): estimate.model_dump() for k, estimate in self.pass_at.items()},
            "episodes": self.episodes,
            "lost": self.lost,
        }


class EvaluationResult(BaseModel):
    """Scores of a task set under one policy version."""

    model_config = ConfigDict(extra="forbid")

    policy_version: int
    tasks: list[TaskResult]
    faults: dict[str, int]
    """Invalid episodes by problem code."""

    @property
    def statistics(self) -> Statistics:
        """Of all tasks."""
        return Statistics.of(self.tasks)

    @property
    def success(self) -> float | None:
        """Mean over tasks of the mean score of a task's valid episodes; None when there is none."""
        means = [task.success for task in self.tasks if task.success is not None]
        return fmean(means) if means else None

    @property
    def episodes(self) -> int:
        """Valid episodes."""
        return sum(len(task.scores) for task in self.tasks)

    @property
    def lost(self) -> int:
        """Episodes without a result, because their environment failed."""
        return sum(task.lost for task in self.tasks)

    def by_domain(self) -> dict[str, Statistics]:
        """Statistics of each domain."""
        domains: dict[str, list[TaskResult]] = {}
        for task in self.tasks:
            domains.setdefault(task.domain, []).append(task)
        return {domain: Statistics.of(tasks) for domain, tasks in sorted(domains.items())}

    def record(self) -> dict[str, Any]:
        """As JSON, with what follows from the scores: a result document."""
        return {
            **self.statistics.record(),
            "domains": {domain: statistics.record() for domain, statistics in self.by_domain().items()},
            **self.model_dump(mode="json"),
        }

    @classmethod
    def of_record(cls, document: Mapping[str, Any]) -> EvaluationResult:
        """The result in a result document. Raises ValueError when there is none."""
        return cls.model_validate({name: document.get(name) for name in cls.model_fields})
